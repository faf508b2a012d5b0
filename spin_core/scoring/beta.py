"""β from the data. Light: the flow process reads it, too.

The pull of the logistic loss fades at a margin of about 3/β nats. Where human answers have less surprise left than that under
θ_t, the rest of the margin can only come from pushing sampled answers down. `training.beta: auto` asks for what there is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

_FILE = "beta.json"  # in the `reference` artifact of train pairs
_NATS = 3.0  # β × the margin at which 5 % of the pull is left
_LOWEST, _HIGHEST = 0.1, 5.0  # the paper's values, in its first iterations and in its last


@dataclass(frozen=True)
class Surprise:
    """Means over the train pairs of how unlikely the human answers are under θ_t."""

    mean_real_nll: float  # nats, summed over an answer's tokens
    mean_real_tokens: float

    @classmethod
    def of(cls, real_logps: Sequence[float] | NDArray[np.float64], real_tokens: Sequence[int] | NDArray[np.int64]) -> Self:
        """From summed log-probs (nats) and lengths, one a pair and at least one."""
        return cls(-math.fsum(real_logps) / len(real_logps), int(sum(real_tokens)) / len(real_tokens))

    @classmethod
    def read(cls, reference: Path) -> Self:
        """What `write` left in a reference artifact."""
        content = json.loads((reference / _FILE).read_text())
        return cls(content["mean_real_nll"], content["mean_real_tokens"])

    def write(self, reference: Path) -> None:
        """Leaves it, and the β that follows, in a reference artifact."""
        (reference / _FILE).write_text(json.dumps(asdict(self) | {"beta_auto": self.beta}))

    @property
    def beta(self) -> float:
        """3 / mean NLL, within 0.1 … 5."""
        return min(_HIGHEST, max(_LOWEST, _NATS / max(self.mean_real_nll, 1e-9)))

    def resolve(self, beta: float | Literal["auto"]) -> float:
        """The recipe's β as a number."""
        return self.beta if beta == "auto" else beta
