"""The proof's own parts: tasks whose frequencies are what it says, intervals that cover, a verdict that can be either."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pytest

from bench.proof.collect import figures
from bench.proof.families import END, FAMILIES, Row, draw, spoil, support_of
from bench.proof.measure import measured
from bench.proof.play import State, data_of, play
from bench.proof.player import between, make, weights_of
from bench.proof.settings import ARMS, Sizes
from bench.proof.statistics import over_seeds
from bench.proof.train import make_pairs, trainable
from bench.proof.verdict import verdict

ROWS = 200


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_a_distribution(family: str) -> None:
    """The exact distance from p_data is wrong where frequencies do not sum to one or two forms are one text."""
    dice = random.Random(0)
    for _ in range(20):
        support = support_of(family, FAMILIES[family].prompt(dice))
        assert math.isclose(sum(frequency for frequency, _ in support), 1.0)
        assert len({tuple(answer) for _, answer in support}) == len(support)
        assert all(3 <= len(answer) <= 40 and answer[-1] == END for _, answer in support)


def test_answers_are_drawn_by_their_frequencies() -> None:
    rows = [row for row in draw({"greet": 1000}, random.Random(0), set()) if math.isclose(row.support[0][0], 0.55)]
    share = sum(row.real == row.support[0][1] for row in rows) / len(rows)
    assert abs(share - 0.55) < 4 * math.sqrt(0.55 * 0.45 / len(rows))


def test_no_prompt_is_in_two_splits() -> None:
    """Held-out rows that were trained on would prove nothing."""
    data = data_of(Sizes.small(), 0, "main")
    prompts = [tuple(row.prompt) for rows in (data.train, data.validation, data.held_out) for row in rows]
    assert len(set(prompts)) == len(prompts)


def test_spoiling_leaves_prompts_and_ends() -> None:
    rows = draw({"sort": 100}, random.Random(0), set())
    spoiled = spoil(rows, 1.0, random.Random(1))
    assert [row.prompt for row in spoiled] == [row.prompt for row in rows]
    assert all(row.real[-1] == END for row in spoiled)
    assert sum(row.real != other.real for row, other in zip(rows, spoiled, strict=True)) > 80


def test_an_interval_over_seeds_is_students() -> None:
    """1, 2, 3: mean 2, standard error 1/√3, t of two degrees of freedom 4.303."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert math.isclose(found.high - found.mean, 4.303 / math.sqrt(3), rel_tol=1e-3)
    assert over_seeds([1.0]).low == -math.inf


def player(dice: np.random.Generator, right: float, nll: float) -> dict[str, Any]:
    """A player's held-out values, about as good as said."""
    shares = (dice.random((ROWS, 4)) < right).mean(1)
    return {
        "t1": shares,
        "greedy": (dice.random(ROWS) < right) * 1.0,
        "nll": dice.normal(nll, 0.01, ROWS) * 10,
        "tokens": np.full(ROWS, 10.0),
    }


def campaign(seed: int, last: tuple[float, float]) -> list[dict[str, Any]]:
    dice = np.random.default_rng(seed)
    return [player(dice, 0.5, 0.5), player(dice, 0.7, 0.4), player(dice, *last)]


def test_the_verdict_can_say_both() -> None:
    """Met where every step and the end win; not where a step loses, where SFT is better, or where a seed is missing."""
    sft = {seed: player(np.random.default_rng(100 + seed), 0.6, 0.45) for seed in range(3)}
    good = {seed: campaign(seed, (0.9, 0.3)) for seed in range(3)}
    assert verdict(good, sft, 3, 2)["met"] is True
    fallen = verdict(good | {1: campaign(1, (0.6, 0.5))}, sft, 3, 2)
    assert not fallen["met"]
    assert {(loss["seed"], loss["iteration"]) for loss in fallen["losses"]} == {(1, 1)}
    assert {loss["measure"] for loss in fallen["losses"]} >= {"nll", "t1"}
    better = {seed: player(np.random.default_rng(200 + seed), 0.97, 0.2) for seed in range(3)}
    beaten = verdict(good, better, 3, 2)
    assert beaten["holds"]
    assert beaten["passed"] == {"t1": False, "greedy": False, "nll": False}
    assert not verdict({seed: good[seed] for seed in (0, 1)}, sft, 3, 2)["met"]
    assert not verdict(good | {2: good[2][:2]}, sft, 3, 2)["met"]


def test_identical_pairs_go_by_the_loss() -> None:
    """The rule of the pairs stage: out for a margin loss, in for one with absolute terms; only the end may differ."""
    rows = [Row("copy", [5, 6], [6, 7, END], []) for _ in range(3)]
    pairs = make_pairs(rows, [0, 1, 2], [[6, 7, END], [6, 7], [6, 8, END]])
    kept = {arm: [pair["row"] for pair in trainable(pairs, ARMS[arm].training(1e-5, 0, 0))] for arm in ("auto", "nce")}
    assert kept == {"auto": [2], "nce": [0, 1, 2]}


def test_an_iteration_is_the_same_again_and_moves_only_as_far_as_gamma() -> None:
    """A run that goes on after a kill must give what it would have given."""
    sizes = Sizes.small()
    model, data = make(sizes, 0), data_of(sizes, 0, "main")
    start = weights_of(model)
    found = []
    for _ in range(2):
        state = State(start)
        done = play(model, ARMS["auto_search"], state, start, data, 0, 1e-3, 0)
        found.append((done["loss"], done["search"], state.weights))
    assert found[0][:2] == found[1][:2]
    assert all(bool((found[0][2][name] == found[1][2][name]).all()) for name in start)
    assert math.isclose(done["loss"][0], math.log(2), abs_tol=1e-4)  # the policy is the reference at the first step
    assert done["search"][str(done["gamma"])] == min(done["search"].values())
    assert all(bool((between(start, state.weights, 0.0)[name] == start[name]).all()) for name in start)


def test_the_distance_from_p_data_is_that_of_an_untrained_player() -> None:
    """A player without weights gives every token 1/V: KL = Σ p·(log p + tokens·log V)."""
    sizes = Sizes.small()
    model, rows = make(sizes, 0), draw({"greet": 4}, random.Random(0), set())
    for value in model.parameters():
        value.data.zero_()
    held = measured(model, rows, 0)
    vocabulary = math.log(model.config.vocab_size)
    expected = [sum(p * (math.log(p) + len(answer) * vocabulary) for p, answer in row.support) for row in rows]
    assert held["kl"] == pytest.approx(expected, rel=1e-5)
    assert figures(held, ["greet"] * 4)["all"]["nll"] == pytest.approx(vocabulary, rel=1e-5)
