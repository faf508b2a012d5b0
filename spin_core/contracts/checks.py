"""Automatic checks of an answer, as a row carries them."""

from __future__ import annotations

from collections.abc import Mapping


def check_answer(check: Mapping[str, str], answer: str) -> bool:
    """Whether an answer is right: the value itself but for case, surrounding space, quotes and a final period."""
    if check["kind"] != "exact":
        raise ValueError(f"unknown check {check['kind']!r}; known: exact")
    return answer.strip().strip("\"'").rstrip(".").strip("\"'").casefold() == check["value"].casefold()
