"""The choice itself: candidates, their likelihoods, the best one. Axes: C candidates, V validation rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Candidate:
    """θ_t + gamma · (θ − θ_t), where θ was trained for `epoch` epochs."""

    epoch: int | None  # None: to the end of training
    gamma: float  # 0 is θ_t

    @property
    def name(self) -> str:
        """For files and for people."""
        end = "end" if self.epoch is None else f"epoch-{self.epoch}"
        return f"{end}-{self.gamma:g}" if self.gamma else "start"


START = Candidate(None, 0.0)


def candidates(epochs: Sequence[int], gammas: Sequence[float]) -> list[Candidate]:
    """θ_t first, then every γ of `gammas` and 1 for each of `epochs` and for the end of training."""
    steps = sorted({*gammas, 1.0})
    return [START, *(Candidate(epoch, gamma) for epoch in (*sorted(epochs), None) for gamma in steps)]


@dataclass(frozen=True)
class Weighed:
    """A candidate on the validation rows; nats a token of the human answers."""

    candidate: Candidate
    nll: float
    gain: float  # θ_t's NLL less this one
    error: float  # standard error of the gain, rows paired


def weigh(found: Sequence[Candidate], logp_CV: NDArray[np.float64], tokens_V: NDArray[np.int64]) -> list[Weighed]:
    """Each candidate by its summed log-probs of the human answers (nats); the first is θ_t.

    The gain is a ratio of sums over rows. Its error is that of a ratio estimator: differences that all rows share have none.
    """
    rows, tokens = len(tokens_V), int(tokens_V.sum())
    weighed = []
    for candidate, logp_V in zip(found, logp_CV, strict=True):
        gained_V = logp_V - logp_CV[0]
        gain = math.fsum(gained_V) / tokens
        spread = math.fsum((gained_V - gain * tokens_V) ** 2)
        error = math.sqrt(rows / max(1, rows - 1) * spread) / tokens
        weighed.append(Weighed(candidate, -math.fsum(logp_V) / tokens, gain, error))
    return weighed


def best(weighed: Sequence[Weighed], may_stay: bool) -> Weighed:
    """The one with the lowest NLL, the earlier of equals; θ_t, the first, only where `may_stay`. NaN is never the best."""
    return min(weighed if may_stay else weighed[1:], key=lambda one: math.inf if math.isnan(one.nll) else one.nll)


def content(weighed: Sequence[Weighed], taken: Weighed, rows: int, tokens: int) -> dict[str, Any]:
    """What choice.json says."""
    listed = [_flat(one) for one in weighed]
    return {"rows": rows, "tokens": tokens, "candidates": listed, "taken": _flat(taken), "nothing_won": taken.candidate == START}


def told(weighed: Sequence[Weighed], taken: Weighed, rows: int) -> str:
    """A line for people."""
    models, on = len(weighed) - 1, f"{rows:,} validation rows"
    if taken.candidate == START:
        return f"nothing was won: none of {models} models is better than θ_t ({taken.nll:.4f} nats a token, {on})"
    when = "the end of training" if taken.candidate.epoch is None else f"epoch {taken.candidate.epoch}"
    what = f"γ {taken.candidate.gamma:g} at {when}, of {models} models"
    return f"{what}: {taken.nll:.4f} nats a token, better than θ_t by {taken.gain:.4f} ± {taken.error:.4f} ({on})"


def _flat(one: Weighed) -> dict[str, Any]:
    return asdict(one.candidate) | {"nll": one.nll, "gain": one.gain, "error": one.error}
