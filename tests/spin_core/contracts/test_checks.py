"""Checks: each kind says what is right, and one that could never be scored is refused."""

from typing import Any

import pytest

from spin_core.contracts.checks import KINDS, BadCheck, check_answer, validate


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
    ],
)
def test_answers(kind: str, value: Any, answer: str, right: bool) -> None:
    assert check_answer({"kind": kind, "value": value}, answer) is right


@pytest.mark.parametrize(
    ("check", "says"),
    [
        ("exact", "no object with kind and value, but str"),
        ({}, "kind None is not known .known: exact, number, regex"),
        ({"kind": "exakt", "value": "x"}, "kind 'exakt' is not known"),
        ({"kind": ["exact"], "value": "x"}, "is not known"),
        ({"kind": "exact"}, "not text .None"),
        ({"kind": "exact", "value": 4}, "not text .4"),
        ({"kind": "number", "value": "four"}, "not a number"),
        ({"kind": "number", "value": float("nan")}, "not a number"),
        ({"kind": "number", "value": True}, "not a number"),
        ({"kind": "regex", "value": "("}, "not a regular expression"),
        ({"kind": "exact", "value": "x", "tolerance": 1}, "fields beside kind and value .tolerance"),
    ],
)
def test_what_could_never_be_scored(check: Any, says: str) -> None:
    with pytest.raises(BadCheck, match=says):
        validate(check)


def test_the_nulls_of_columnar_files_are_absence() -> None:
    assert validate({"kind": "exact", "value": "x", "tolerance": None}) == {"kind": "exact", "value": "x"}
    assert set(KINDS) == {"exact", "number", "regex"}
