"""One iteration of self-play in this process: opponent's answers, pairs, reference, training, line search."""

from __future__ import annotations

import random
import time
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from bench.proof.families import Row, draw, spoil
from bench.proof.measure import nll
from bench.proof.player import Weights, between, logps, sample, weights_of
from bench.proof.settings import GAMMAS, REGIMES, Arm, Sizes
from bench.proof.train import Pair, make_pairs, name_newer, score, spin, trainable
from spin_core.selection.choice import Weighed, best, candidates, weigh


@dataclass
class State:
    """What an arm carries from one iteration to the next."""

    weights: Weights  # of θ_t
    fresh: list[Pair] = field(default_factory=list)  # the pairs of the iteration before


@dataclass(frozen=True)
class Data:
    """The rows of a seed, no prompt twice: what is trained on, what choices are made by, what is reported."""

    train: list[Row]
    validation: list[Row]
    held_out: list[Row]


def base_rows(sizes: Sizes, seed: int) -> list[Row]:
    """What the base model is made of: prompts of all tasks, a third of the answers spoiled."""
    dice = random.Random(f"{seed}/base")
    return spoil(draw(REGIMES["main"].shares(sizes.base), dice, set()), 1 / 3, dice)


def data_of(sizes: Sizes, seed: int, regime: str) -> Data:
    """The regime's rows, drawn after the base model's so that these hold none of their prompts."""
    taken = {tuple(row.prompt) for row in base_rows(sizes, seed)}
    dice, found = random.Random(f"{seed}/{regime}"), REGIMES[regime]
    wanted = (round(sizes.train * found.train), sizes.validation, sizes.held_out)
    return Data(*(draw(found.shares(count), dice, taken) for count in wanted))


def play(model: Any, arm: Arm, state: State, start: Weights, data: Data, seed: int, rate: float, iteration: int) -> dict[str, Any]:
    """θ_t becomes θ_{t+1} in `state` and `model`; returns what was done. `start` is θ_0. Sampling seeds are the same for all arms."""
    begun = time.perf_counter()
    settings = arm.training(rate, iteration, seed)
    opponent = start if arm.frozen else state.weights
    model.load_state_dict(opponent)
    numbers = [number for number in range(len(data.train)) for _ in range(arm.samples)]
    answers = sample(model, [data.train[number].prompt for number in numbers], 10_000 + 100 * seed + iteration)
    fresh = make_pairs(data.train, numbers, answers, iteration)
    pairs = trainable(fresh + (state.fresh if arm.carry else []), settings)
    if arm.history:
        name_newer(pairs)
    done: dict[str, Any] = {"sampled": len(fresh), "sampled_s": round(time.perf_counter() - begun, 1)}
    if pairs:
        score(model, pairs)
        model.load_state_dict(state.weights)
        done |= asdict(spin(model, pairs, settings))
    new = weights_of(model)
    if arm.search:
        weighed = _search(model, state.weights, new, data.validation)
        done["search"] = {str(one.candidate.gamma): one.nll for one in weighed}
        done["gamma"] = best(weighed, may_stay=True, right_counts=arm.exact).candidate.gamma
        new = between(state.weights, new, done["gamma"])
        model.load_state_dict(new)
    state.weights, state.fresh = new, fresh
    done["validation_nll"] = nll(model, data.validation)
    return done | {"settings": {"loss": arm.loss, "rate": settings.learning_rate}, "seconds": round(time.perf_counter() - begun, 1)}


def _search(model: Any, old: Weights, new: Weights, rows: list[Row]) -> list[Weighed]:
    """Every model between two on the rows, θ_t first."""
    found, logp_CV = candidates((), GAMMAS), []
    for candidate in found:
        model.load_state_dict(between(old, new, candidate.gamma))
        logp_CV.append(logps(model, [row.prompt for row in rows], [row.real for row in rows]))
    return weigh(found, np.array(logp_CV), np.array([len(row.real) for row in rows]))
