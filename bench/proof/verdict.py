"""The bar, as it was set before the run: does the default hold what it wins, and is it worth at least what SFT is?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from bench.proof.statistics import change, over_seeds

Held = Mapping[str, Sequence[Any]]  # `measure.measured` of held-out rows
MEASURES = ("t1", "greedy", "nll")
_POINT = 0.01


def value(held: Held, measure: str) -> float:
    """T = 1 or greedy accuracy (share), or nats a token."""
    return sum(held[measure]) / (sum(held["tokens"]) if measure == "nll" else len(held[measure]))


def steps(players: Sequence[Held]) -> list[dict[str, Any]]:
    """Each iteration against the one before on one seed, θ_0 first: the change with its interval, and whether it is a loss by more."""
    found = []
    for iteration, (before, after) in enumerate(pairwise(players)):
        for measure in MEASURES:
            weights = after["tokens"] if measure == "nll" else None
            moved = change(before[measure], after[measure], weights)
            worse = moved.low > 0 if measure == "nll" else moved.high < 0
            found.append({"iteration": iteration, "measure": measure, "change": moved, "worse": worse})
    return found


def verdict(default: Mapping[int, Sequence[Held]], sft: Mapping[int, Held], seeds: int, iterations: int) -> dict[str, Any]:
    """`default` has every seed's θ_0, θ_1, …; `sft` its early-stopped SFT player. `met` only where all seeds are whole."""
    complete = len(default) == seeds and all(len(players) == iterations + 1 and seed in sft for seed, players in default.items())
    found = {seed: steps(players) for seed, players in default.items()}
    losses = [{"seed": seed} | step for seed, listed in found.items() for step in listed if step["worse"]]
    ends = {seed: players[-1] for seed, players in default.items() if seed in sft and len(players) == iterations + 1}
    against = {}
    for measure in MEASURES:
        sign = -1 if measure == "nll" else 1  # above zero is better
        gains = [sign * (value(end, measure) - value(sft[seed], measure)) for seed, end in ends.items()]
        against[measure] = over_seeds(gains) if gains else None
    floors = {"t1": -_POINT, "greedy": -_POINT, "nll": 0.0}
    passed = {name: bool(gain and gain.low > floors[name]) for name, gain in against.items()}
    return {
        "met": complete and not losses and all(passed.values()),
        "complete": complete,
        "holds": complete and not losses,
        "losses": losses,
        "tests": sum(map(len, found.values())),
        "against_sft": against,
        "passed": passed,
    }
