"""Automatic checks of an answer, as a row carries them: `{"kind": …, "value": …}`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from spin_core.contracts.checks import libraries, plain
from spin_core.contracts.checks.kind import BadCheck, Kind

KINDS: dict[str, Kind] = plain.KINDS | libraries.KINDS


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


def scorer(check: Mapping[str, Any]) -> Callable[[str], float]:
    """What says how right an answer is, 0 … 1. Raises BadCheck where the check itself is not."""
    fields = validate(check)
    right, value = KINDS[fields["kind"]].right, fields["value"]
    return lambda answer: float(right(value, answer))


def check_answer(check: Mapping[str, Any], answer: str) -> float:
    """How right one answer is, see `scorer`."""
    return scorer(check)(answer)


__all__ = ["KINDS", "BadCheck", "Kind", "check_answer", "scorer", "validate"]
