"""What is out of bounds on held-out rows, by hand."""

from typing import Any

import numpy as np
import pytest

from spin_core.evaluation.diagnostics import Held, diagnose

SOUND = {"checks": 0.5, "nll": 0.4, "tokens": 10.0, "unfinished": 0.02, "entropy": 8.0}


def held(real: float = 2.0, generated: float = -1.0, left: float = 6.0, count: int = 40, pairs: int = 50, **after: Any) -> Held:
    """`count` pairs that differ of `pairs`, whose means are these; θ_{t+1} is like θ_t but for `after`."""
    swing = np.resize([1.0, -1.0], count)
    values = (mean + spread * swing for mean, spread in ((real, 3.0), (generated, 2.0), (left, 1.0)))
    return Held(*values, pairs, SOUND, SOUND | after)


def test_figures_by_hand() -> None:
    found = diagnose(held(tokens=11.0, entropy=6.0))
    assert found.warnings == {}
    assert found.figures == pytest.approx(
        {
            "gained_real": 2.0,
            "gained_generated": -1.0,
            "margin": 3.0,
            "left": 6.0,
            "pushed_down": 1 / 3,
            "differing": 0.8,
            "length": 1.1,
            "entropy": 0.75,
        }
    )


@pytest.mark.parametrize(
    ("case", "name", "says"),
    [
        (held(-3.1, -5.0), "pushed_down", "the margin comes from pushing sampled answers down: human answers became 3.1 nats less likely"),
        (held(0.2, -3.8), "pushed_down", "pushing sampled answers down: human answers gained only 0.2 of 4.0 nats"),
        (held(-1.0, 2.0), "gained_real", "human answers became 1.0 nats less likely than under θ_t"),
        (held(5.0, -4.0, 6.5), "margin", "the margin is 9.0 nats an answer, and human answers had 6.5 left under θ_t: the rest can"),
        (
            held(checks=0.45, nll=0.41),
            "worse",
            "right answers went from 50.0% to 45.0% and the NLL from 0.400 to 0.410: this iteration lost more than it won",
        ),
        (held(tokens=12.5), "length", "sampled answers became 25% longer (10.0 to 12.5 tokens)"),
        (held(tokens=7.0), "length", "sampled answers became 30% shorter (10.0 to 7.0 tokens)"),
        (held(unfinished=0.08, count=400, pairs=500), "unfinished", "sampled answers without an end went from 2.0% to 8.0%"),
        (held(count=4, pairs=50), "differing", "only 4 of 50 sampled answers differ from the human ones"),
        (held(entropy=3.6), "entropy", "fell to 45% of θ_t's (8.0 to 3.6 nats an answer)"),
    ],
)
def test_each_one_has_its_sentence(case: Held, name: str, says: str) -> None:
    found = diagnose(case).warnings
    assert list(found) == [name]
    assert says in found[name]


@pytest.mark.parametrize(
    "case",
    [
        held(checks=0.45),  # the NLL is as it was
        held(checks=0.6, nll=0.9),
        held(nll=0.9),
        held(tokens=11.9, unfinished=0.06, entropy=4.1),
        held(unfinished=0.08, count=20, pairs=24),  # two answers more: less than two standard errors of 0.055
        held(1.0, -8.9, 10.0),  # 0.899 of the margin
        held(0.0, 0.0),  # the player is θ_t
        held(-0.005, -0.148, 2.55),  # pushed down, but by a twentieth of what is left: SmolLM2 after three epochs of SFT
        held(-0.9, 2.0),  # less than two standard errors of 0.47
        held(-3.0, -5.0, count=10),  # too few to say
        held(-9.0, -9.0, count=10, pairs=12, unfinished=0.9),
    ],
)
def test_what_is_within_bounds_is_not_told(case: Held) -> None:
    assert diagnose(case).warnings == {}


def test_a_player_without_answers_or_pairs_has_no_figures() -> None:
    nothing = np.array([])
    silent = SOUND | {"tokens": 0.0}
    del silent["entropy"]
    found = diagnose(Held(nothing, nothing, nothing, 0, silent, silent))
    assert found.warnings == {}
    assert set(found.figures.values()) == {None}
