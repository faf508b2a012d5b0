"""The learning rate by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """A linear rise over the first `warmup` steps, which ends at the peak, then `shape` towards 0 one step after the last.

    Every step has a rate: those of transformers begin at 0, and the first step of a run, all of a short one, is lost.
    """

    shape: str  # linear, cosine or constant
    warmup: int  # steps
    steps: int  # of the whole schedule; a run may stop before

    @classmethod
    def of(cls, settings: Mapping[str, Any], steps: int) -> Schedule:
        """The recipe's schedule over `steps`."""
        return cls(settings["schedule"], max(1, math.ceil(settings["warmup_ratio"] * steps)), steps)

    def share(self, step: int) -> float:
        """Of the peak learning rate, at `step` from 1 on."""
        if step <= self.warmup:
            return step / self.warmup
        done = min(1.0, (step - self.warmup) / (self.steps + 1 - self.warmup))
        return {"linear": 1.0 - done, "cosine": 0.5 + 0.5 * math.cos(math.pi * done), "constant": 1.0}[self.shape]
