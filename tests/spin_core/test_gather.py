"""Gather proves that every row is there exactly once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spin_core.errors import Corrupt
from spin_core.gather import prove_complete
from spin_core.rows import row_id


@given(st.lists(st.text(min_size=1, max_size=4), min_size=1, unique=True), st.randoms())
def test_any_loss_or_copy_is_found(ids: list[str], random: object) -> None:
    """A lost or doubled row would train on other data than the recipe says."""
    prove_complete(list(reversed(ids)), ids, "train")
    victim = random.choice(ids)  # type: ignore[attr-defined]
    for found in ([i for i in ids if i != victim], [*ids, victim], [*ids, victim + "?"]):
        if victim + "?" in ids and found[-1] == victim + "?":
            continue
        with pytest.raises(Corrupt, match="gather: 1 of"):
            prove_complete(found, ids, "train")


def test_row_ids_tell_contexts_and_answers_apart() -> None:
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    assert len(row_id([user, answer])) == 16
    assert row_id([user, answer]) != row_id([user, {"role": "assistant", "content": "c"}])
    assert row_id([{"role": "user", "content": "a\nb"}]) != row_id([user, {"role": "user", "content": "b"}])
