"""Losses of the margin r − g: identical pairs have no gradient, but for `dpop`'s penalty. Axes: B pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from spin_core.training.objectives.base import Objective, Start


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Objective):
    """−log σ(β(r − g)): equation 4.7 of arXiv 2401.01335 with the logistic ℓ."""

    name: ClassVar[str] = "sigmoid"

    def pair_loss(self, r_B: Tensor, g_B: Tensor) -> Tensor:
        """See `Objective`."""
        return -logsigmoid(self.beta * (r_B - g_B))

    @property
    def start(self) -> Start:
        """See `Objective`."""
        return Start(math.log(2.0), -self.beta / 2, self.beta / 2)


@dataclass(frozen=True, kw_only=True)
class Hinge(Objective):
    """max(0, 1 − β(r − g)): equation 4.7 of arXiv 2401.01335 with the hinge ℓ."""

    name: ClassVar[str] = "hinge"
    reach: ClassVar[float] = 1.0

    def pair_loss(self, r_B: Tensor, g_B: Tensor) -> Tensor:
        """See `Objective`."""
        return (1.0 - self.beta * (r_B - g_B)).clamp(min=0.0)

    @property
    def start(self) -> Start:
        """See `Objective`."""
        return Start(1.0, -self.beta, self.beta)


@dataclass(frozen=True, kw_only=True)
class Ipo(Objective):
    """(r − g − 1/(2β))²: equation 17 of arXiv 2310.12036, on summed log-probs as that paper has them."""

    name: ClassVar[str] = "ipo"
    reach: ClassVar[float] = 0.5

    def pair_loss(self, r_B: Tensor, g_B: Tensor) -> Tensor:
        """See `Objective`."""
        return (r_B - g_B - 0.5 / self.beta) ** 2

    @property
    def start(self) -> Start:
        """See `Objective`."""
        return Start(0.25 / self.beta**2, -1.0 / self.beta, 1.0 / self.beta)


@dataclass(frozen=True, kw_only=True)
class SigmoidNorm(Sigmoid):
    """`Sigmoid` of log-ratios a token: length-normalised DPO, section 5 of arXiv 2411.15124 (there β 5)."""

    name: ClassVar[str] = "sigmoid_norm"


@dataclass(frozen=True, kw_only=True)
class Dpop(Sigmoid):
    """−log σ(β(r − g − λ·max(0, −r))): arXiv 2402.13228, held back where human answers became less likely."""

    name: ClassVar[str] = "dpop"
    dpop_lambda: float

    def pair_loss(self, r_B: Tensor, g_B: Tensor) -> Tensor:
        """See `Objective`."""
        return super().pair_loss(r_B - self.dpop_lambda * (-r_B).clamp(min=0.0), g_B)

    @property
    def start(self) -> Start:
        """See `Objective`."""
        return Start(math.log(2.0), -self.beta / 2 * (1.0 + self.dpop_lambda), self.beta / 2)
