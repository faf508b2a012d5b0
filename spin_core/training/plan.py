"""Which pairs meet in which micro-batch, planned from their lengths before training starts.

The pairs of all epochs form one stream that is cut into optimiser steps of equal size, and each step into the same number of
micro-batches on every device. Micro-batches are balanced: the longest first, each to the one that grows least. First-fit
would fill them to the brim one after the other, and leave the last device with the rest.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spin_core.runtime.errors import BadInput

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Sizes:
    """The pairs [N]: which row each is of, as a number from 0, its tokens of prompt, human answer and sampled answer, and with history
    the pair whose sampled answer is its newer one, −1 for none."""

    row: Ints
    prompt: Ints
    real: Ints
    generated: Ints
    newer: Ints | None = None

    def __len__(self) -> int:
        return len(self.row)

    @property
    def width(self) -> Ints:
        """Tokens of a pair's prompt and its longer answer."""
        width: Ints = self.prompt + np.maximum(self.real, self.generated)
        return width


@dataclass(frozen=True)
class Plan:
    """`steps[s][m]` holds the indices of the pairs of one micro-batch; device r of W takes m = r, r + W, …

    Only where the last step has fewer pairs than devices are some of its micro-batches empty.
    """

    steps: list[list[list[int]]]
    world: int

    @property
    def accumulation(self) -> int:
        """Micro-batches a device in a step; the last step may have fewer."""
        return len(self.steps[0]) // self.world

    def batches(self, rank: int) -> list[list[int]]:
        """The micro-batches of one device, in order. A device without a pair computes another's, so that all stay in step."""
        return [batch or step[0][:1] for step in self.steps for batch in step[rank :: self.world]]

    def idle(self, step: int, rank: int) -> bool:
        """Whether what the device computes in a step is another's pair, and must count nothing."""
        return not any(self.steps[step][rank :: self.world])

    def pairs(self, step: int) -> int:
        """Pairs in an optimiser step, over all devices."""
        return sum(map(len, self.steps[step]))

    def saving(self, sizes: Sizes) -> str:
        """What trees save over separate sequences, padding not counted, as a line for the log."""
        batches = [batch for step in self.steps for batch in step]
        pairs = np.fromiter((pair for batch in batches for pair in batch), dtype=np.int64)
        batch = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
        _, first = np.unique(batch * len(sizes) + sizes.row[pairs], return_index=True)  # of a row, in each batch
        packed = int((sizes.prompt + sizes.real)[pairs[first]].sum() + sizes.generated[pairs].sum())
        separate = int((2 * sizes.prompt + sizes.real + sizes.generated)[pairs].sum())
        if sizes.newer is not None:
            older = sizes.newer[pairs] >= 0
            newer = sizes.newer[pairs[older]]
            apart = np.setdiff1d(batch[older] * len(sizes) + newer, batch * len(sizes) + pairs)  # not in the micro-batch anyway
            packed += int(sizes.generated[apart % len(sizes)].sum())
            separate += int((2 * sizes.prompt + sizes.generated)[pairs[older]].sum() + sizes.generated[newer].sum())
        return f"packed: {packed:,} tokens where separate pairs have {separate:,} and their padding, {1 - packed / separate:.0%} saved"


Unit = list[int]  # pairs that are laid out together: one row with one or several opponents' answers


def plan(
    sizes: Sizes, *, pairs_per_step: int, epochs: int, seed: int, group_rows: bool, tokens: int, world: int, padded: bool = False
) -> Plan:
    """All optimiser steps. What a step holds depends on the pairs, `seed` and `group_rows` only, never on the devices.

    `tokens` bounds a micro-batch: trees where `padded` is false, else two sequences a pair, padded to the longest. One unit
    that is larger is a micro-batch by itself.
    """
    if pairs_per_step < world:
        raise BadInput(f"training.pairs_per_step={pairs_per_step} is less than {world} devices", remedy="make it a multiple of them")
    if not len(sizes):
        raise BadInput("there are no pairs to train on", remedy="use more rows")
    stream = _Stream(sizes, epochs, seed, group_rows)
    balancer = _Balancer(sizes, tokens, world, padded)
    count = min(max(map(balancer.needed, stream.steps(pairs_per_step))), pairs_per_step // world)
    cut: list[list[list[int]]] = []
    for step in stream.steps(pairs_per_step):
        pairs = sum(map(len, step))
        slots = min(count, max(1, pairs // world)) * world  # only the last step can be short
        batches, _ = balancer.spread(step, min(slots, pairs))
        cut.append(batches + [[]] * (slots - len(batches)))
    return Plan(cut, world)


class _Stream:
    """The pairs of all epochs in the order of training, each with the number of its unit."""

    def __init__(self, sizes: Sizes, epochs: int, seed: int, group_rows: bool) -> None:
        row = sizes.row if group_rows else np.arange(len(sizes))
        by_row = np.argsort(row, kind="stable")
        count = np.bincount(row)
        first = np.cumsum(count) - count  # of a row, in by_row
        order = np.concatenate([_shuffled(len(count), f"{seed}/{epoch}") for epoch in range(epochs)])
        size = count[order]
        within = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        self._pairs = by_row[np.repeat(first[order], size) + within]
        self._unit = np.repeat(np.arange(len(order)), size)

    def steps(self, size: int) -> Iterator[list[Unit]]:
        """Steps of `size` pairs; a unit on a boundary is divided."""
        for start in range(0, len(self._pairs), size):
            units: list[Unit] = []
            last = -1
            stop = start + size
            for pair, unit in zip(self._pairs[start:stop].tolist(), self._unit[start:stop].tolist(), strict=True):
                if unit == last:
                    units[-1].append(pair)
                else:
                    units.append([pair])
                last = unit
            yield units


def _shuffled(count: int, seed: str) -> Ints:
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return np.array(order, dtype=np.int64)


class _Balancer:
    """Spreads the units of a step over micro-batches of about equal cost."""

    def __init__(self, sizes: Sizes, tokens: int, world: int, padded: bool) -> None:
        self._tokens, self._world, self._padded = tokens, world, padded
        # a unit's tree is the first pair's prompt and human answer, and every sampled answer; Python's own numbers are the
        # faster ones here, one at a time
        self._shared = (sizes.prompt + sizes.real).tolist()
        self._own = sizes.generated.tolist()
        self._width = sizes.width.tolist()
        self._newer = sizes.newer.tolist() if sizes.newer is not None else None

    def _tree(self, unit: Unit) -> int:
        """Tokens of one tree, or the width of the unit's longest sequence."""
        if self._padded:
            return int(max(self._width[pair] for pair in unit))
        answers = set(unit) | {self._newer[pair] for pair in unit if self._newer[pair] >= 0} if self._newer else unit
        return int(self._shared[unit[0]] + sum(self._own[pair] for pair in answers))

    def needed(self, step: list[Unit]) -> int:
        """The fewest micro-batches a device that keep to the budget."""
        most = max(1, len(step) // self._world)
        for count in range(self._at_least(step), most):
            batches, costs = self.spread(step, count * self._world)
            if all(cost <= self._tokens or len(batch) == 1 for batch, cost in zip(batches, costs, strict=True)):
                return count
        return most

    def _at_least(self, step: list[Unit]) -> int:
        """Fewer micro-batches a device cannot keep to it: what is larger than the budget is alone, the rest fills the others."""
        costs = [(2 * len(unit) if self._padded else 1) * self._tree(unit) for unit in step]
        fitting = [cost for cost in costs if cost <= self._tokens]
        batches = len(costs) - len(fitting) + -(-sum(fitting) // self._tokens)
        return max(1, -(-batches // self._world))

    def spread(self, step: list[Unit], count: int) -> tuple[list[list[int]], list[int]]:
        """`count` micro-batches with their costs, the dearest first; none is empty."""
        units = sorted(((self._tree(unit), unit) for unit in _divided(step, count)), reverse=True)
        batches, costs = _spread_padded(units, count) if self._padded else _spread_trees(units, count)
        order = sorted(range(count), key=lambda b: (-costs[b], b))
        return [batches[b] for b in order], [costs[b] for b in order]


def _spread_padded(units: list[tuple[int, Unit]], count: int) -> tuple[list[list[int]], list[int]]:
    """Each unit, the widest first, to the batch that is the cheapest with it; at least `count` units."""
    batches = [list(unit) for _, unit in units[:count]]
    widths = [width for width, _ in units[:count]]  # a batch's first unit is its widest
    costs = [2 * len(unit) * width for width, unit in units[:count]]
    for _, unit in units[count:]:
        with_it = [cost + 2 * len(unit) * width for cost, width in zip(costs, widths, strict=True)]
        best = with_it.index(min(with_it))
        batches[best] += unit
        costs[best] = with_it[best]
    return batches, costs


def _spread_trees(units: list[tuple[int, Unit]], count: int) -> tuple[list[list[int]], list[int]]:
    """Each unit, the largest first, to the batch that holds least."""
    batches: list[list[int]] = [[] for _ in range(count)]
    costs = [0] * count
    least = [(0, b) for b in range(count)]
    for size, unit in units:
        cost, best = least[0]
        batches[best] += unit
        costs[best] = cost + size
        heapq.heapreplace(least, (cost + size, best))
    return batches, costs


def _divided(step: list[Unit], count: int) -> list[Unit]:
    """The units, the largest of them divided until there are `count`."""
    units = list(step)
    while len(units) < count:
        largest = units.pop(max(range(len(units)), key=lambda i: len(units[i])))
        units += [largest[:-1], largest[-1:]]
    return units
