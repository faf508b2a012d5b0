"""What a recipe must know of the losses that it can name, without their mathematics (`training/objectives`) and without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

LossName = Literal["sigmoid", "hinge", "ipo", "nce", "nca", "sppo", "dpop", "sigmoid_norm"]
Need = Literal["reference", "lengths", "identical"]


class Loss(NamedTuple):
    """One loss."""

    needs: frozenset[Need]  # the reference's log-probs; the answers' lengths; pairs whose two answers are the same tokens
    smooths: bool = False  # whether label smoothing has a meaning
    per_token: bool = False  # whether log-ratios are means over the answer's tokens
    trl: str | None = None  # the loss of TRL's DPOTrainer with the same values


_MARGIN: frozenset[Need] = frozenset({"reference"})
_ABSOLUTE: frozenset[Need] = frozenset({"reference", "identical"})  # it has a gradient on identical pairs, which holds them in place

# TRL's `ipo` divides by the lengths, its `robust` and `exo_pair` smooth labels otherwise, its `sft` is a mean over the tokens of a
# micro-batch, and it has no dpop. Smoothing would have dpop hold sampled answers up, λ times as hard.
LOSSES: dict[str, Loss] = {
    "sigmoid": Loss(_MARGIN, smooths=True, trl="sigmoid"),
    "hinge": Loss(_MARGIN, trl="hinge"),
    "ipo": Loss(_MARGIN),
    "nce": Loss(_ABSOLUTE, smooths=True, trl="bco_pair"),
    "nca": Loss(_ABSOLUTE, trl="nca_pair"),
    "sppo": Loss(_ABSOLUTE, trl="sppo_hard"),
    "dpop": Loss(_ABSOLUTE),
    "sigmoid_norm": Loss(_MARGIN | {"lengths"}, smooths=True, per_token=True, trl="sigmoid_norm"),
}
_SFT: frozenset[Need] = frozenset({"lengths", "identical"})


def needs(loss: str, sft_weight: float) -> frozenset[Need]:
    """What the named loss with an SFT term of this weight needs."""
    return LOSSES[loss].needs | (_SFT if sft_weight else frozenset())


def trl_lacks(settings: Mapping[str, Any]) -> str | None:
    """What of these training settings the TRL backend does not have; None where it trains the same loss."""
    lacking = [] if LOSSES[settings["loss"]].trl else [f"loss: {settings['loss']}"]
    lacking += [name for name in ("label_smoothing", "sft_weight", "history_weight") if settings[name]]
    return " and no ".join(lacking) or None
