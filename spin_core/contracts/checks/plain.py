"""Checks that need no library: exact text, the last number, a regular expression."""

from __future__ import annotations

import math
import re
from typing import Any

from spin_core.contracts.checks.kind import Kind

_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")


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
