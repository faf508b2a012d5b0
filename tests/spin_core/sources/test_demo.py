"""The demo's questions are unique, reproducible and scored by their own checks."""

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
