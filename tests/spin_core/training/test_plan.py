"""The plan of micro-batches: every pair exactly once an epoch, equal steps, equal counts on every device, within the budget."""

import time
from collections import Counter
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_core.runtime.errors import BadInput
from spin_core.training.plan import Plan, Sizes, plan


class Size(NamedTuple):
    row: str
    prompt: int
    real: int
    generated: int


def columns(sizes: list[Size]) -> Sizes:
    """The same pairs as the plan takes them."""
    numbers = {row: number for number, row in enumerate(dict.fromkeys(size.row for size in sizes))}
    rows = [(numbers[size.row], *size[1:]) for size in sizes]
    return Sizes(*np.array(rows, dtype=np.int64).reshape(-1, 4).T)


def make(sizes: list[Size], **changes: object) -> Plan:
    given: dict[str, object] = {"pairs_per_step": 8, "epochs": 1, "seed": 0, "group_rows": True, "tokens": 200, "world": 1} | changes
    return plan(columns(sizes), **given)  # type: ignore[arg-type]


def tokens_of(sizes: list[Size], batch: list[int]) -> int:
    """Trees: prompt and human answer once a row."""
    return sum({sizes[i].row: sizes[i].prompt + sizes[i].real for i in batch}.values()) + sum(sizes[i].generated for i in batch)


lengths = st.integers(1, 90)
pairs = st.lists(st.tuples(st.integers(0, 12), lengths, lengths, lengths), min_size=8, max_size=60).map(
    # a row has one prompt and one human answer
    lambda found: [Size(str(row), 5 + row, 7 + row, generated) for row, _, _, generated in found]
)


@settings(max_examples=80, deadline=None)
@given(sizes=pairs, step=st.integers(4, 16), epochs=st.integers(1, 3), world=st.integers(1, 4), padded=st.booleans(), grouped=st.booleans())
def test_every_pair_is_trained_once_an_epoch_and_devices_stay_in_step(
    sizes: list[Size], step: int, epochs: int, world: int, padded: bool, grouped: bool
) -> None:
    found = make(sizes, pairs_per_step=step, epochs=epochs, world=world, padded=padded, group_rows=grouped)
    counts = Counter(pair for batches in found.steps for batch in batches for pair in batch)
    assert counts == dict.fromkeys(range(len(sizes)), epochs)
    assert all(found.pairs(number) == step for number in range(len(found.steps) - 1))
    assert all(len(batches) == found.accumulation * world for batches in found.steps[:-1])
    assert len(found.steps[-1]) % world == 0
    assert len(found.steps[-1]) <= found.accumulation * world or len(found.steps) == 1
    per_device = [found.batches(rank) for rank in range(world)]
    assert len({len(batches) for batches in per_device}) == 1
    assert all(batch for batches in per_device for batch in batches)
    idle = [sum(found.idle(number, rank) for rank in range(world)) for number in range(len(found.steps))]
    assert idle == [max(0, world - found.pairs(number)) for number in range(len(found.steps))]


@settings(max_examples=80, deadline=None)
@given(sizes=pairs, seed=st.integers(0, 5), step=st.integers(8, 20), epochs=st.integers(1, 2), grouped=st.booleans())
def test_what_a_step_holds_does_not_depend_on_devices_or_budget(
    sizes: list[Size], seed: int, step: int, epochs: int, grouped: bool
) -> None:
    """The last step, too, which can have fewer pairs than devices. Or a campaign continued elsewhere would train on other steps."""
    contents = []
    for world, tokens, padded in ((1, 10**6, False), (1, 50, True), (2, 100, False), (8, 100, False), (8, 10**6, True)):
        found = make(sizes, seed=seed, tokens=tokens, world=world, padded=padded, pairs_per_step=step, epochs=epochs, group_rows=grouped)
        contents.append([sorted(pair for batch in batches for pair in batch) for batches in found.steps])
    assert all(content == contents[0] for content in contents)


@settings(max_examples=100, deadline=None)
@given(sizes=pairs)
def test_a_micro_batch_keeps_to_the_budget_or_holds_one_tree(sizes: list[Size]) -> None:
    found = make(sizes, tokens=120)
    for batch in (batch for step in found.steps for batch in step):
        assert tokens_of(sizes, batch) <= 120 or len({sizes[pair].row for pair in batch}) == 1


def test_a_pack_may_end_exactly_at_the_budget() -> None:
    sizes = [Size(str(i), 10, 20, 20) for i in range(8)]
    assert [len(step) for step in make(sizes, tokens=200).steps] == [2]
    assert [len(step) for step in make(sizes, tokens=199).steps] == [3]


def test_carried_over_pairs_meet_their_row() -> None:
    """Two opponents' answers to 40 rows: with grouping each row is one tree, but for rows that a step's end divides."""
    sizes = [Size(str(i % 40), 50, 20, 20) for i in range(80)]
    together, apart = (make(sizes, group_rows=grouped, tokens=1000) for grouped in (True, False))

    def total(found: Plan) -> int:
        return sum(tokens_of(sizes, batch) for step in found.steps for batch in step)

    assert total(together) == 40 * (50 + 20 + 2 * 20)
    assert total(apart) > 1.3 * total(together)
    assert "packed: 4,400 tokens where separate pairs have 11,200" in together.saving(columns(sizes))


@settings(max_examples=100, deadline=None)
@given(sizes=pairs, grouped=st.booleans(), data=st.data())
def test_newer_answers_change_no_step_and_keep_to_the_budget(sizes: list[Size], grouped: bool, data: st.DataObject) -> None:
    """What is computed of a micro-batch is its pairs' trees and the newer answers that are not in them."""
    rows = [[other for other in range(len(sizes)) if other != pair and sizes[other].row == sizes[pair].row] for pair in range(len(sizes))]
    newer = [data.draw(st.sampled_from([-1, *others])) for others in rows]
    given_sizes = replace(columns(sizes), newer=np.array(newer))
    keys: dict[str, Any] = {"pairs_per_step": 8, "epochs": 1, "seed": 0, "group_rows": grouped, "tokens": 120}
    found, *others = (plan(of, world=world, **keys) for of, world in ((given_sizes, 1), (given_sizes, 2), (columns(sizes), 1)))
    contents = [[sorted(pair for batch in step for pair in batch) for step in each.steps] for each in (found, *others)]
    assert contents[0] == contents[1] == contents[2]
    batches = [batch for step in found.steps for batch in step]
    answers = [{*batch, *(newer[pair] for pair in batch if newer[pair] >= 0)} for batch in batches]
    trees = [sum({sizes[i].row: sizes[i].prompt + sizes[i].real for i in batch}.values()) for batch in batches]
    costs = [tree + sum(sizes[i].generated for i in all_of) for tree, all_of in zip(trees, answers, strict=True)]
    for batch, cost in zip(batches, costs, strict=True):
        assert cost <= 120 or len({sizes[pair].row for pair in batch}) == 1
    assert f"packed: {sum(costs):,} tokens" in found.saving(given_sizes)


def test_with_their_row_newer_answers_cost_nothing() -> None:
    """The 40 rows of two opponents' answers again: the newer answer of each carried pair is a branch that is there."""
    sizes = [Size(str(i % 40), 50, 20, 20) for i in range(80)]
    given_sizes = replace(columns(sizes), newer=np.array([-1] * 40 + list(range(40))))
    keys: dict[str, Any] = {"pairs_per_step": 8, "epochs": 1, "seed": 0, "tokens": 1000, "world": 1}
    together = plan(given_sizes, group_rows=True, **keys)
    assert together.steps == make(sizes, tokens=1000).steps
    # to lay out the 40 history pairs separately would be 40 · 2 · (50 + 20) tokens more
    assert "packed: 4,400 tokens where separate pairs have 16,800" in together.saving(given_sizes)


def test_too_few_pairs_are_one_clear_line() -> None:
    with pytest.raises(BadInput, match="4 is less than 8 devices"):
        make([Size(str(i), 1, 1, 1) for i in range(20)], pairs_per_step=4, world=8)
    with pytest.raises(BadInput, match="no pairs"):
        make([])


def test_fewer_pairs_than_devices_are_one_step() -> None:
    found = make([Size(str(i), 1, 1, 1) for i in range(3)], world=8)
    assert [found.idle(0, rank) for rank in range(8)] == [False] * 3 + [True] * 5
    assert sorted(pair for rank in range(3) for pair in found.batches(rank)[0]) == [0, 1, 2]
    assert found.pairs(0) == 3


def test_a_large_plan_takes_seconds() -> None:
    """A million pairs must be planned within a minute; this is a twentieth of them."""
    rng = np.random.default_rng(0)
    sizes = Sizes(np.arange(50_000), *rng.integers(100, 300, (3, 50_000)))
    started = time.process_time()
    found = plan(sizes, pairs_per_step=64, epochs=2, seed=0, group_rows=True, tokens=8192, world=8)
    assert time.process_time() - started < 6
    assert len(found.steps) == 1563


def test_the_seed_decides_the_order() -> None:
    sizes = [Size(str(i), 1, 1, 1) for i in range(64)]
    assert make(sizes) == make(sizes)
    assert make(sizes) != make(sizes, seed=1)
    first, second = make(sizes, epochs=2).steps[:8], make(sizes, epochs=2).steps[8:]
    assert first != second
