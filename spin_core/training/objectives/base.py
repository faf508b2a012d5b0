"""What an objective is: one protocol, so that the trainer knows none of them by name. Axes: B pairs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from spin_core.recipe.losses import LOSSES, Need, needs


@dataclass(frozen=True)
class Newer:
    """A newer player's answer beside the sampled one of H of the pairs: fp32 [H] each."""

    pair_H: Tensor  # int64, which of the B
    logp_H: Tensor
    reference_H: Tensor
    tokens_H: Tensor


@dataclass(frozen=True)
class Pairs:
    """A micro-batch as an objective sees it: fp32 [B] each; log-probs in nats, summed over the answer's tokens."""

    real_B: Tensor
    generated_B: Tensor
    reference_real_B: Tensor
    reference_generated_B: Tensor
    real_tokens_B: Tensor
    generated_tokens_B: Tensor
    newer: Newer | None = None  # where a pair has one


class Start(NamedTuple):
    """A pair's loss where policy = reference, and its derivatives there; at a kink, those of its steeper side."""

    value: float
    real: float  # by r
    generated: float  # by g


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """A loss of r and g, the log-ratios log p_θ − log p_θt of the human and the sampled answer, with its settings.

    A subclass gives its name in the recipe, `pair_loss` and `start`; what else there is to know is in `LOSSES`.
    """

    beta: float
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    history_weight: float = 0.0

    name: ClassVar[str]
    reach: ClassVar[float] = 3.0  # β·nats that it asks for: a logistic loss pulls with 5 % of its force from there on

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The objective with its settings out of the recipe's training settings, β as a number."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})

    @property
    def needs(self) -> frozenset[Need]:
        """Of the reference's log-probs, the answers' lengths, and identical pairs."""
        return needs(self.name, self.sft_weight)

    @property
    def per_token(self) -> bool:
        """Whether r and g are divided by their answer's tokens."""
        return LOSSES[self.name].per_token

    @abstractmethod
    def pair_loss(self, r_B: Tensor, g_B: Tensor) -> Tensor:
        """Loss a pair, [B]."""

    @property
    @abstractmethod
    def start(self) -> Start:
        """`pair_loss` where policy = reference."""

    def loss(self, pairs: Pairs) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss a pair, and metrics of each pair, detached; all fp32 [B].

        Label smoothing ε takes a share ε of the pairs for labelled the wrong way round (conservative DPO): the two answers
        change places. The SFT term is the human answer's negative log-likelihood a token. The history term is the loss of the newer
        answer preferred over the sampled one, as in T-SPIN (arXiv 2601.08198, there over θ_0's and without a reference); like the
        SFT term it is no part of the metrics.
        """
        r_B, g_B = pairs.real_B - pairs.reference_real_B, pairs.generated_B - pairs.reference_generated_B
        real_B, generated_B = self.beta * r_B.detach(), self.beta * g_B.detach()
        margin_B = real_B - generated_B
        metrics = {"rewards/real": real_B, "rewards/generated": generated_B}
        metrics |= {"rewards/accuracies": (margin_B > 0).float(), "rewards/margins": margin_B}
        if self.per_token:
            r_B, g_B = r_B / pairs.real_tokens_B, g_B / pairs.generated_tokens_B
        loss_B = self._smoothed(r_B, g_B)
        if newer := pairs.newer:
            n_H = newer.logp_H - newer.reference_H
            if self.per_token:
                n_H = n_H / newer.tokens_H
            loss_B = loss_B.index_add(0, newer.pair_H, self.history_weight * self._smoothed(n_H, g_B[newer.pair_H]))
        if self.sft_weight:
            loss_B = loss_B - self.sft_weight * pairs.real_B / pairs.real_tokens_B
        return loss_B, metrics

    def _smoothed(self, r_B: Tensor, g_B: Tensor) -> Tensor:
        loss_B = self.pair_loss(r_B, g_B)
        if self.label_smoothing:
            loss_B = (1.0 - self.label_smoothing) * loss_B + self.label_smoothing * self.pair_loss(g_B, r_B)
        return loss_B

    def at_reference(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Loss a pair where policy = reference, and by how much an error of a nat in all log-probs could move it; fp32 [B]."""
        start, smoothing = self.start, self.label_smoothing
        value_B = start.value - self.sft_weight * pairs.reference_real_B / pairs.real_tokens_B
        real = abs((1.0 - smoothing) * start.real + smoothing * start.generated)
        generated = abs((1.0 - smoothing) * start.generated + smoothing * start.real)
        power = 1 if self.per_token else 0
        slope_B = real / pairs.real_tokens_B**power + generated / pairs.generated_tokens_B**power
        if newer := pairs.newer:
            slope_H = real / newer.tokens_H**power + generated / pairs.generated_tokens_B[newer.pair_H] ** power
            value_B = value_B.index_add(0, newer.pair_H, torch.full_like(slope_H, self.history_weight * start.value))
            slope_B = slope_B.index_add(0, newer.pair_H, self.history_weight * slope_H)
        return value_B, slope_B + self.sft_weight / pairs.real_tokens_B

    def asks(self, tokens: float) -> float:
        """Nats by which it would have human answers of this mean length more likely than sampled ones, before its pull fades."""
        return self.reach / self.beta * (tokens if self.per_token else 1.0)
