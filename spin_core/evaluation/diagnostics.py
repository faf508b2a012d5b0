"""What shows early that self-play takes back what it won, on held-out rows. Axes: D held-out pairs whose two answers differ.

A margin can come from human answers that became likelier or from sampled answers that became less likely. Past what the human
answers have left to win, only the second is there, and it takes mass from wherever the model happens to have it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Nats = NDArray[np.float64]
_ENOUGH = 20  # pairs; with fewer a mean says little
_PUSHED_DOWN = 0.9  # share of the margin
_SMALL = 0.1  # of what human answers have left: where a smaller margin comes from does no harm yet
_LENGTH = 0.2  # relative change
_UNFINISHED = 0.05  # rise of the share, and more than sampling makes of it: two standard errors
_DIFFERING = 0.1  # share of the pairs
_ENTROPY = 0.5  # of θ_t's


@dataclass(frozen=True)
class Held:
    """What is known of the held-out rows, θ_t beside θ_{t+1}."""

    gained_real_D: Nats  # log p_{t+1} − log p_t of the human answers
    gained_generated_D: Nats  # of θ_t's answers
    left_D: Nats  # −log p_t of the human answers: as much can be won at most
    pairs: int  # those without a difference, too
    before: Mapping[str, float]  # θ_t's figures: checks, nll, tokens, unfinished, entropy (nats an answer), as far as they are known
    after: Mapping[str, float]  # θ_{t+1}'s


@dataclass(frozen=True)
class Diagnosis:
    """Figures, and a sentence for each one that is out of bounds, by name."""

    figures: dict[str, float | None]  # means; in nats an answer, or shares
    warnings: dict[str, str]


def diagnose(held: Held) -> Diagnosis:
    """Pure; small data (under 20 pairs) warns of nothing."""
    figures = _figures(held)
    found: dict[str, str] = {}
    if held.pairs >= _ENOUGH:
        if len(held.left_D) >= _ENOUGH:
            found |= _of_the_margin(held, figures)
        found |= _of_the_players(held, figures)
    return Diagnosis(figures, found)


def _figures(held: Held) -> dict[str, float | None]:
    real, generated, left = (_mean(values) for values in (held.gained_real_D, held.gained_generated_D, held.left_D))
    margin = None if real is None or generated is None else real - generated
    return {
        "gained_real": real,
        "gained_generated": generated,
        "margin": margin,
        "left": left,
        "pushed_down": -generated / margin if generated is not None and margin is not None and margin > 0 else None,
        "differing": len(held.left_D) / held.pairs if held.pairs else None,
        "length": _ratio(held, "tokens"),
        "entropy": _ratio(held, "entropy"),
    }


def _mean(values_D: Nats) -> float | None:
    return float(values_D.mean()) if len(values_D) else None


def _below_zero(values_D: Nats) -> bool:
    """By more than two standard errors."""
    return bool(values_D.mean() + 2 * values_D.std(ddof=1) / math.sqrt(len(values_D)) < 0)


def _ratio(held: Held, name: str) -> float | None:
    before, after = held.before.get(name), held.after.get(name)
    return after / before if before and after is not None else None


def _of_the_margin(held: Held, figures: Mapping[str, float | None]) -> dict[str, str]:
    real, margin, left, pushed = (figures[name] for name in ("gained_real", "margin", "left", "pushed_down"))
    assert real is not None
    assert margin is not None
    assert left is not None
    found = {}
    human = (
        f"human answers became {-real:.1f} nats less likely" if real < 0 else f"human answers gained only {real:.1f} of {margin:.1f} nats"
    )
    if pushed is not None and pushed > _PUSHED_DOWN and margin > _SMALL * left:
        found["pushed_down"] = f"the margin comes from pushing sampled answers down: {human}"
    elif _below_zero(held.gained_real_D):
        found["gained_real"] = f"{human} than under θ_t, and sampled ones no less: a smaller learning rate or a larger β moves less"
    if margin > left:
        told = f"the margin is {margin:.1f} nats an answer, and human answers had {left:.1f} left under θ_t"
        found["margin"] = f"{told}: the rest can only come from pushing sampled answers down (training.beta: auto asks for less)"
    return found


def _of_the_players(held: Held, figures: Mapping[str, float | None]) -> dict[str, str]:
    before, after, found = held.before, held.after, {}
    if _fell(before, after, "checks") and _fell(after, before, "nll"):
        checks = f"right answers went from {before['checks']:.1%} to {after['checks']:.1%}"
        found["worse"] = f"{checks} and the NLL from {before['nll']:.3f} to {after['nll']:.3f}: this iteration lost more than it won"
    length = figures["length"]
    if length is not None and abs(length - 1) > _LENGTH:
        tokens = f"{before['tokens']:.1f} to {after['tokens']:.1f} tokens"
        how = "longer" if length > 1 else "shorter"
        found["length"] = (
            f"sampled answers became {abs(length - 1):.0%} {how} ({tokens}): the model learns length, where contents should differ"
        )
    if _fell(after, before, "unfinished") and after["unfinished"] - before["unfinished"] > max(_UNFINISHED, 2 * _error(held)):
        shares = f"{before['unfinished']:.1%} to {after['unfinished']:.1%}"
        found["unfinished"] = f"sampled answers without an end went from {shares}: the model unlearns to end its turn"
    differing = figures["differing"]
    if differing is not None and differing < _DIFFERING:
        pairs = f"{len(held.left_D):,} of {held.pairs:,}"
        found["differing"] = f"only {pairs} sampled answers differ from the human ones: little is left to tell apart"
    entropy = figures["entropy"]
    if entropy is not None and entropy < _ENTROPY:
        nats = f"{before['entropy']:.1f} to {after['entropy']:.1f} nats an answer"
        found["entropy"] = f"the entropy of the model's own answers fell to {entropy:.0%} of θ_t's ({nats}): it repeats a few of them"
    return found


def _fell(before: Mapping[str, float], after: Mapping[str, float], name: str) -> bool:
    return name in before and name in after and after[name] < before[name]


def _error(held: Held) -> float:
    """The standard error of the difference of the shares of unfinished answers, if there were one a row."""
    return math.sqrt(sum(player["unfinished"] * (1 - player["unfinished"]) / held.pairs for player in (held.before, held.after)))
