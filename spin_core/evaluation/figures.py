"""Players side by side, from what each was judged to be: their figures, and what one has more than another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spin_core.evaluation.intervals import interval
from spin_core.judging.figures import Measured, read_figures
from spin_core.runtime.errors import BadInput
from spin_core.store import Ref

Judged = Mapping[str, Measured]


def judged_on(split: str, judged: Sequence[Ref]) -> Judged:
    """All figures of a player on a split. Raises BadInput where two evaluators have one of the same name."""
    found: dict[str, Measured] = {}
    for ref in judged:
        figures = read_figures(ref.path, split)
        if twice := found.keys() & figures.keys():
            raise BadInput(f"two evaluators have a figure {min(twice)!r}", remedy="rename your function in evaluation.custom")
        found |= figures
    return found


def alone(player: Judged) -> dict[str, Any]:
    """Each figure with its interval."""
    return {name: interval(figure.values_N, figure.weights_N).as_dict() for name, figure in player.items()}


def gained(before: Judged, after: Judged) -> dict[str, Any]:
    """after − before of each figure that both have, over the prompts that both answered, with its interval."""
    found = {}
    for name in (name for name in after if name in before):
        first, second = _aligned(before[name], after[name])
        found[name] = interval(second.values_N - first.values_N, second.weights_N).as_dict()
    return found


def _aligned(first: Measured, second: Measured) -> tuple[Measured, Measured]:
    if first.ids == second.ids:
        return first, second
    both = set(first.ids) & set(second.ids)
    return _only(first, both), _only(second, both)


def _only(figure: Measured, ids: set[str]) -> Measured:
    order = sorted((row, number) for number, row in enumerate(figure.ids) if row in ids)
    rows = np.array([number for _, number in order], dtype=np.int64)
    return Measured(figure.unit, figure.better, [row for row, _ in order], figure.values_N[rows], figure.weights_N[rows])


def kinds(*players: Judged) -> dict[str, Any]:
    """What each figure is: its unit, and whether more or less of it is better."""
    return {name: {"unit": figure.unit, "better": figure.better} for player in players for name, figure in player.items()}
