"""Automatic checks of an answer, as a row carries them: `{"kind": …, "value": …}`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")


class BadCheck(ValueError):
    """A check that could never be scored, with the reason."""


@dataclass(frozen=True)
class Kind:
    """One way to tell whether an answer is right."""

    value: str  # what its value has to be, for messages
    fits: Callable[[Any], bool]
    right: Callable[[Any, str], bool]  # (value, answer)


def _same_text(value: str, answer: str) -> bool:
    """The value itself but for case, surrounding space, quotes and a final period."""
    return answer.strip().strip("\"'").rstrip(".").strip("\"'").casefold() == value.casefold()


def _number(value: Any) -> float | None:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value.replace(",", ""))
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def _last_number(value: Any, answer: str) -> bool:
    """The last number of the answer is the value, to a relative 1e-6."""
    wanted, found = _number(value), _NUMBER.findall(answer)
    given = _number(found[-1].rstrip(",")) if found else None
    return wanted is not None and given is not None and math.isclose(given, wanted, rel_tol=1e-6, abs_tol=1e-9)


def _compiles(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(value) and re.compile(value) is not None
    except re.error:
        return False


KINDS: dict[str, Kind] = {
    "exact": Kind("text", lambda value: isinstance(value, str), _same_text),
    "number": Kind("a number", lambda value: _number(value) is not None, _last_number),
    "regex": Kind("a regular expression", _compiles, lambda value, answer: re.search(value, answer) is not None),
}


def validate(check: object) -> dict[str, Any]:
    """The check as it is kept. Raises BadCheck with what is wrong with it."""
    if not isinstance(check, Mapping):
        raise BadCheck(f"check is no object with kind and value, but {type(check).__name__}")
    fields = {name: value for name, value in check.items() if value is not None}  # columnar files fill up with nulls
    known = ", ".join(KINDS)
    kind = KINDS.get(str(fields.get("kind")))
    if kind is None:
        raise BadCheck(f"check of kind {fields.get('kind')!r} is not known (known: {known})")
    if fields.keys() - {"kind", "value"}:
        raise BadCheck(f"check has fields beside kind and value ({', '.join(map(str, fields.keys() - {'kind', 'value'}))})")
    if not kind.fits(fields.get("value")):
        raise BadCheck(f"check of kind {fields['kind']} has a value that is not {kind.value} ({fields.get('value')!r})")
    return fields


def check_answer(check: Mapping[str, Any], answer: str) -> bool:
    """Whether an answer is right. Raises BadCheck where the check itself is not."""
    fields = validate(check)
    return KINDS[fields["kind"]].right(fields["value"], answer)
