"""Checks by kept libraries, which are imported where a row asks for them.

math: equality as mathematics (math-verify). json_schema: the answer is JSON that a schema allows (jsonschema). ifeval: verifiable
instructions as IFEval has them, arXiv 2311.07911 (if-verifiable). reasoning_gym: a scorer of the package reasoning-gym.
"""

from __future__ import annotations

import importlib
import json
import re
from typing import Any

from spin_core.contracts.checks.kind import BadCheck, Kind

_FENCED = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL)


def _library(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise BadCheck(f"its kind needs {package}, which is not installed: pip install 'spinflow[checks]'") from None


def _parsed(text: str) -> Any:
    return _library("math_verify", "math-verify").parse(text)


def _wanted(value: Any) -> Any:
    """The value is an expression; of an answer only what stands between dollars or in a box is read as one."""
    text = str(value).strip()
    return _parsed(text if not text or "$" in text or "\\boxed" in text else f"${text}$")


def _is_math(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool) and bool(_wanted(value))


def _equals(value: Any, answer: str) -> bool:
    return bool(_library("math_verify", "math-verify").verify(_wanted(value), _parsed(answer)))


def _is_schema(value: Any) -> bool:
    library = _library("jsonschema", "jsonschema")
    try:
        library.validators.validator_for(value).check_schema(value)
    except (library.SchemaError, TypeError, AttributeError) as error:
        raise BadCheck(f"check of kind json_schema has a value that is no JSON schema ({getattr(error, 'message', error)})") from None
    return isinstance(value, dict)


def _keeps_to(value: Any, answer: str) -> bool:
    """The whole answer, or what a fence around all of it holds."""
    fenced = _FENCED.match(answer.strip())
    try:
        found = json.loads(fenced[1] if fenced else answer)
    except ValueError:
        return False
    library = _library("jsonschema", "jsonschema")
    return bool(library.validators.validator_for(value)(value).is_valid(found))


def _followed(value: Any, answer: str) -> Any:
    """The results and scores of if-verifiable."""
    rules = _library("if_verifiable.ifeval.instructions_registry", "if-verifiable").INSTRUCTION_DICT
    evaluate = _library("if_verifiable.common", "if-verifiable").evaluate_instructions
    names = value["instruction_id_list"]
    return evaluate(answer, names, value.get("kwargs") or [{}] * len(names), value.get("prompt") or "", rules)


def _are_instructions(value: Any) -> bool:
    names = value.get("instruction_id_list") if isinstance(value, dict) else None
    if not isinstance(names, list) or not names:
        return False
    known = _library("if_verifiable.ifeval.instructions_registry", "if-verifiable").INSTRUCTION_DICT
    if unknown := [name for name in names if name not in known]:
        raise BadCheck(f"check of kind ifeval has an instruction that is not known ({unknown[0]!r})")
    try:
        _followed(value, "some answer")
    except Exception as error:
        raise BadCheck(f"check of kind ifeval cannot be followed ({type(error).__name__}: {error})") from None
    return len(value.get("kwargs") or names) == len(names)


def _scorer(value: Any) -> Any:
    return _library("reasoning_gym", "reasoning-gym").get_score_answer_fn(value["dataset"])


def _is_entry(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("dataset"), str) or not isinstance(value.get("entry"), dict):
        return False
    try:
        _scorer(value)(str(value["entry"].get("answer")), value["entry"])
    except BadCheck:
        raise
    except Exception as error:
        raise BadCheck(f"check of kind reasoning_gym cannot be scored ({type(error).__name__}: {error})") from None
    return True


KINDS: dict[str, Kind] = {
    "math": Kind("an expression", _is_math, _equals),
    "json_schema": Kind("a JSON schema", _is_schema, _keeps_to),
    "ifeval": Kind(
        "an object with instruction_id_list and kwargs, a mapping each",
        _are_instructions,
        lambda value, answer: float(_followed(value, answer)[1].binary_strict),
    ),
    "reasoning_gym": Kind(
        "an object with dataset and entry", _is_entry, lambda value, answer: float(_scorer(value)(answer, value["entry"]))
    ),
}
