"""Losses of r and g apart: identical pairs hold right answers where they are. Axes: B pairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import logsigmoid

from spin_core.training.objectives.base import Objective, Start


@dataclass(frozen=True, kw_only=True)
class Absolute(Objective):
    """What they share."""


@dataclass(frozen=True, kw_only=True)
class Nce(Objective):
    """−log σ(βr) − log σ(−βg): noise-contrastive estimation with the opponent as the noise.

    Gutmann and Hyvärinen, JMLR 13 (2012), where β is 1; BCO's loss (arXiv 2404.04656) without its shift.
    """

    name: ClassVar[str] = "nce"

    def pair_loss(self, r_B: Tensor, g_B: Tensor) -> Tensor:
        """See `Objective`."""
        return -logsigmoid(self.beta * r_B) - logsigmoid(-self.beta * g_B)

    @property
    def start(self) -> Start:
        """See `Objective`."""
        return Start(2.0 * math.log(2.0), -self.beta / 2, self.beta / 2)


@dataclass(frozen=True, kw_only=True)
class Nca(Objective):
    """−log σ(βr) − ½log σ(−βr) − ½log σ(−βg): NCA for one pair, arXiv 2402.05369."""

    name: ClassVar[str] = "nca"
    reach: ClassVar[float] = math.log(2.0)  # where the two terms of r balance: σ(βr) = 2/3

    def pair_loss(self, r_B: Tensor, g_B: Tensor) -> Tensor:
        """See `Objective`."""
        r_B, g_B = self.beta * r_B, self.beta * g_B
        return -logsigmoid(r_B) - 0.5 * logsigmoid(-r_B) - 0.5 * logsigmoid(-g_B)

    @property
    def start(self) -> Start:
        """See `Objective`."""
        return Start(2.0 * math.log(2.0), -self.beta / 4, self.beta / 4)


@dataclass(frozen=True, kw_only=True)
class Sppo(Objective):
    """(r − 1/(2β))² + (g + 1/(2β))²: arXiv 2405.00675, where the human answer surely wins; its η is 1/β. Not halved."""

    name: ClassVar[str] = "sppo"
    reach: ClassVar[float] = 0.5

    def pair_loss(self, r_B: Tensor, g_B: Tensor) -> Tensor:
        """See `Objective`."""
        return (r_B - 0.5 / self.beta) ** 2 + (g_B + 0.5 / self.beta) ** 2

    @property
    def start(self) -> Start:
        """See `Objective`."""
        return Start(0.5 / self.beta**2, -1.0 / self.beta, 1.0 / self.beta)
