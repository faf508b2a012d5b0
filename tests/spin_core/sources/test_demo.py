"""The demo's questions are unique, reproducible and scored by their own checks."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_core.contracts.checks import check_answer
from spin_core.sources.demo import demo_rows


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 600), st.integers(0, 2**32))
def test_prompts_are_unique_and_every_human_answer_passes(count: int, seed: int) -> None:
    rows = demo_rows(count, seed)
    assert len({row["messages"][0]["content"] for row in rows}) == len(rows) == count
    assert all(check_answer(row["check"], row["messages"][1]["content"]) for row in rows)
    assert rows == demo_rows(count, seed)


def test_rows_are_one_question_and_one_bare_answer() -> None:
    for row in demo_rows():
        assert [turn["role"] for turn in row["messages"]] == ["user", "assistant"]
        assert row["messages"][1]["content"] == row["check"]["value"]


def test_another_seed_asks_other_questions() -> None:
    assert demo_rows(seed=0) != demo_rows(seed=1)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("River", True), (" river.\n", True), ("RIVER", True), ("river bank", False), ("The answer is river.", False), ("", False)],
)
def test_exact_check(answer: str, right: bool) -> None:
    assert check_answer({"kind": "exact", "value": "river"}, answer) is right


def test_an_unknown_check_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown check"):
        check_answer({"kind": "regex", "value": "."}, "x")
