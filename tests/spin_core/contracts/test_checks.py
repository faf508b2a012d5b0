"""Checks: each kind says what is right, and one that could never be scored is refused."""

import sys
from typing import Any

import pytest

from spin_core.contracts.checks import KINDS, BadCheck, check_answer, validate

SCHEMA = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
TWO_RULES = {
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
    "kwargs": [{}, {"relation": "less than", "num_words": 20, "keywords": None}],
}
SUM = {"question": "Calculate 5 - 3 - 6.", "answer": "-4", "metadata": {"expression": "5 - 3 - 6"}}


@pytest.mark.parametrize(
    ("kind", "value", "answer", "right"),
    [
        ("exact", "river", "River", True),
        ("exact", "river", " river.\n", True),
        ("exact", "river", '"RIVER"', True),
        ("exact", "river", "river bank", False),
        ("exact", "river", "The answer is river.", False),
        ("exact", "river", "", False),
        ("number", 1200, "3 + 4 is 7, so the sum is 1,200.", True),
        ("number", "1,200", "1200.0", True),
        ("number", -0.5, "about -0.5", True),
        ("number", 7, "7 or 8", False),
        ("number", 7, "none", False),
        ("regex", r"^yes\b", "yes, it is", True),
        ("regex", r"^yes\b", "oh yes", False),
        ("math", "\\frac{1}{2}", "So the answer is $0.5$.", True),
        ("math", "x^2 + 2x + 1", "$(x+1)^2$", True),
        ("math", 4, "\\boxed{4}", True),
        ("math", "\\sqrt{2}", "1.5", False),
        ("json_schema", SCHEMA, '{"age": 4}', True),
        ("json_schema", SCHEMA, '```json\n{"age": 4}\n```', True),
        ("json_schema", SCHEMA, '{"age": "four"}', False),
        ("json_schema", SCHEMA, "Here it is: {}", False),
        ("ifeval", TWO_RULES, "a short answer without it", True),
        ("ifeval", TWO_RULES, "a short answer, with it", False),
        ("reasoning_gym", {"dataset": "basic_arithmetic", "entry": SUM}, "-4", True),
        ("reasoning_gym", {"dataset": "basic_arithmetic", "entry": SUM}, "4", False),
    ],
)
def test_answers(kind: str, value: Any, answer: str, right: bool) -> None:
    assert check_answer({"kind": kind, "value": value}, answer) == right


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ("exact", "no object with kind and value, but str"),
        ({}, "kind None is not known .known: exact, number, regex, math"),
        ({"kind": "exakt", "value": "x"}, "kind 'exakt' is not known"),
        ({"kind": ["exact"], "value": "x"}, "is not known"),
        ({"kind": "exact"}, "not text .None"),
        ({"kind": "exact", "value": 4}, "not text .4"),
        ({"kind": "number", "value": "four"}, "not a number"),
        ({"kind": "number", "value": float("nan")}, "not a number"),
        ({"kind": "number", "value": True}, "not a number"),
        ({"kind": "regex", "value": "("}, "not a regular expression"),
        ({"kind": "math", "value": ""}, "not an expression"),
        ({"kind": "json_schema", "value": {"type": "objekt"}}, "no JSON schema .'objekt' is not valid"),
        ({"kind": "json_schema", "value": 4}, "no JSON schema"),
        ({"kind": "ifeval", "value": {"instruction_id_list": ["no:comma"]}}, "an instruction that is not known .'no:comma'"),
        ({"kind": "ifeval", "value": TWO_RULES | {"kwargs": [{}, {"words": 3}]}}, "cannot be followed"),
        ({"kind": "reasoning_gym", "value": {"dataset": "sums", "entry": {}}}, "cannot be scored"),
        ({"kind": "exact", "value": "x", "tolerance": 1}, "fields beside kind and value .tolerance"),
    ],
)
def test_what_could_never_be_scored(check: Any, says: str) -> None:
    with pytest.raises(BadCheck, match=says):
        validate(check)


def test_the_nulls_of_columnar_files_are_absence() -> None:
    assert validate({"kind": "exact", "value": "x", "tolerance": None}) == {"kind": "exact", "value": "x"}
    assert set(KINDS) == {"exact", "number", "regex", "math", "json_schema", "ifeval", "reasoning_gym"}


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(BadCheck, match=r"needs math-verify, which is not installed: pip install 'spinflow\[checks\]'"):
        validate({"kind": "math", "value": "1"})
