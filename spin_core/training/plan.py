"""Which pairs meet in which micro-batch, planned from their lengths before training starts.

The pairs of all epochs form one stream that is cut into optimiser steps of equal size, and each step into the same number of
micro-batches on every device. Micro-batches are balanced: the longest first, each to the one that grows least. First-fit
would fill them to the brim one after the other, and leave the last device with the rest.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from spin_core.runtime.errors import BadInput


class Size(NamedTuple):
    """One pair: its row, and tokens of prompt, human answer and sampled answer."""

    row: str
    prompt: int
    real: int
    generated: int


@dataclass(frozen=True)
class Plan:
    """`steps[s][m]` holds the indices of the pairs of one micro-batch; device r of W takes m = r, r + W, …"""

    steps: list[list[list[int]]]
    world: int

    @property
    def accumulation(self) -> int:
        """Micro-batches a device in a step; the last step may have fewer."""
        return len(self.steps[0]) // self.world

    def batches(self, rank: int) -> list[list[int]]:
        """The micro-batches of one device, in order."""
        return [batch for step in self.steps for batch in step[rank :: self.world]]

    def pairs(self, step: int) -> int:
        """Pairs in an optimiser step, over all devices."""
        return sum(map(len, self.steps[step]))

    def saving(self, sizes: Sequence[Size]) -> str:
        """What trees save over separate sequences, padding not counted, as a line for the log."""
        packed = separate = 0
        for batch in (batch for step in self.steps for batch in step):
            packed += sum({sizes[pair].row: sizes[pair].prompt + sizes[pair].real for pair in batch}.values())
            packed += sum(sizes[pair].generated for pair in batch)
            separate += sum(2 * sizes[pair].prompt + sizes[pair].real + sizes[pair].generated for pair in batch)
        return f"packed: {packed:,} tokens where separate pairs have {separate:,} and their padding, {1 - packed / separate:.0%} saved"


Unit = list[int]  # pairs that are laid out together: one row with one or several opponents' answers


def plan(
    sizes: Sequence[Size], *, pairs_per_step: int, epochs: int, seed: int, group_rows: bool, tokens: int, world: int, padded: bool = False
) -> Plan:
    """All optimiser steps. What a step holds depends on the pairs, `seed` and `group_rows` only, never on the devices.

    `tokens` bounds a micro-batch: trees where `padded` is false, else two sequences a pair, padded to the longest. One unit
    that is larger is a micro-batch by itself. Pairs that are left at the end and fewer than devices are dropped.
    """
    if pairs_per_step < world:
        raise BadInput(f"training.pairs_per_step={pairs_per_step} is less than {world} devices", remedy="make it a multiple of them")
    steps = [step for step in _cut(_stream(sizes, epochs, seed, group_rows), pairs_per_step) if sum(map(len, step)) >= world]
    if not steps:
        raise BadInput(f"{len(sizes)} pairs are too few to train on with {world} devices", remedy="use more rows")
    balancer = _Balancer(sizes, tokens, world, padded)
    count = min(max(map(balancer.needed, steps)), pairs_per_step // world)
    cut = [balancer.spread(step, count * world)[0] for step in steps[:-1]]
    last = min(count, sum(map(len, steps[-1])) // world)  # it may be short
    return Plan([*cut, balancer.spread(steps[-1], last * world)[0]], world)


def _stream(sizes: Sequence[Size], epochs: int, seed: int, group_rows: bool) -> Iterator[Unit]:
    rows: dict[str, Unit] = {}
    for index, size in enumerate(sizes):
        rows.setdefault(size.row if group_rows else str(index), []).append(index)
    for epoch in range(epochs):
        units = list(rows.values())
        random.Random(f"{seed}/{epoch}").shuffle(units)
        yield from units


def _cut(units: Iterator[Unit], size: int) -> list[list[Unit]]:
    """Steps of `size` pairs; a unit on a boundary is divided."""
    steps: list[list[Unit]] = [[]]
    room = size
    for unit in units:
        while unit:
            if not room:
                steps.append([])
                room = size
            head, unit = unit[:room], unit[room:]
            steps[-1].append(head)
            room -= len(head)
    return steps


class _Balancer:
    """Spreads the units of a step over micro-batches of about equal cost."""

    def __init__(self, sizes: Sequence[Size], tokens: int, world: int, padded: bool) -> None:
        self._sizes, self._tokens, self._world, self._padded = sizes, tokens, world, padded

    def _tree(self, unit: Unit) -> int:
        """Tokens of one tree, or the width of the unit's longest sequence."""
        sizes = [self._sizes[pair] for pair in unit]
        if self._padded:
            return max(size.prompt + max(size.real, size.generated) for size in sizes)
        return sizes[0].prompt + sizes[0].real + sum(size.generated for size in sizes)

    def needed(self, step: list[Unit]) -> int:
        """The fewest micro-batches a device that keep to the budget."""
        most = max(1, len(step) // self._world)
        for count in range(1, most):
            batches, costs = self.spread(step, count * self._world)
            if all(cost <= self._tokens or len(batch) == 1 for batch, cost in zip(batches, costs, strict=True)):
                return count
        return most

    def spread(self, step: list[Unit], count: int) -> tuple[list[list[int]], list[int]]:
        """`count` micro-batches with their costs, the dearest first; none is empty."""
        units = sorted(((self._tree(unit), unit) for unit in _divided(step, count)), reverse=True)
        batches: list[list[int]] = [[] for _ in range(count)]
        costs, widths = [0] * count, [0] * count
        for size, unit in units:
            # the first unit of a padded batch is its widest
            added = [2 * len(unit) * (width or size) if self._padded else size for width in widths]
            best = min(range(count), key=lambda b: (bool(batches[b]) and costs[b] + added[b], b))
            batches[best] += unit
            costs[best] += added[best]
            widths[best] = widths[best] or size
        order = sorted(range(count), key=lambda b: (-costs[b], b))
        return [batches[b] for b in order], [costs[b] for b in order]


def _divided(step: list[Unit], count: int) -> list[Unit]:
    """The units, the largest of them divided until there are `count`."""
    units = list(step)
    while len(units) < count:
        largest = units.pop(max(range(len(units)), key=lambda i: len(units[i])))
        units += [largest[:-1], largest[-1:]]
    return units
