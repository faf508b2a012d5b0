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


_CHANCE = 2  # standard errors
_TELLING = 0.05  # of the samples: with fewer exact ones a few short answers would decide


@dataclass(frozen=True)
class Weighed:
    """A candidate on the validation rows; nats a token of the human answers."""

    candidate: Candidate
    nll: float
    gain: float  # θ_t's NLL less this one
    error: float  # standard error of the gain, rows paired
    exact: float  # the share of samples at T = 1 that would be the human answer to the token: the mean of its probability


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
        exact = math.fsum(np.exp(logp_V)) / rows
        weighed.append(Weighed(candidate, -math.fsum(logp_V) / tokens, gain, error, exact))
    return weighed


def best(weighed: Sequence[Weighed], may_stay: bool, right_counts: bool = False) -> Weighed:
    """The one with the lowest NLL; θ_t, the first, only where `may_stay`. The earlier of equals; NaN is never the best.

    Where it counts how often answers are right, the one with most exact samples of those whose NLL is not worse than θ_t's by more
    than chance: a mean of logarithms is made by the rows that a model has wrong for sure, and shrinks steps that put others right.
    """
    among = weighed if may_stay else weighed[1:]
    if right_counts and _telling(weighed):
        sound = [one for one in among if one.gain >= -_CHANCE * one.error]
        if sound:
            return max(sound, key=lambda one: one.exact)
    return min(among, key=lambda one: math.inf if math.isnan(one.nll) else one.nll)


def content(weighed: Sequence[Weighed], taken: Weighed, rows: int, tokens: int) -> dict[str, Any]:
    """What choice.json says."""
    listed = [_flat(one) for one in weighed]
    return {"rows": rows, "tokens": tokens, "candidates": listed, "taken": _flat(taken), "nothing_won": taken.candidate == START}


def told(weighed: Sequence[Weighed], taken: Weighed, rows: int, right_counts: bool = False) -> str:
    """A line for people."""
    models, on, start = len(weighed) - 1, f"{rows:,} validation rows", weighed[0]
    by_exact = right_counts and _telling(weighed)
    nats = f"{taken.nll:.4f} nats a token"
    if taken.candidate == START:
        what = f"{start.exact:.1%} of its samples the human answer, {nats}" if by_exact else nats
        return f"nothing was won: none of {models} models is better than θ_t ({what}, {on})"
    when = "the end of training" if taken.candidate.epoch is None else f"epoch {taken.candidate.epoch}"
    what = f"γ {taken.candidate.gamma:g} at {when}, of {models} models"
    if by_exact:
        more = "more" if taken.gain < 0 else "less"
        share = f"{taken.exact:.1%} of samples the human answer, θ_t's {start.exact:.1%}"
        return f"{what}: {share}, {nats}, {abs(taken.gain):.4f} ± {taken.error:.4f} {more} than θ_t ({on})"
    return f"{what}: {nats}, better than θ_t by {taken.gain:.4f} ± {taken.error:.4f} ({on})"


def _telling(weighed: Sequence[Weighed]) -> bool:
    """Whether θ_t's samples are exact often enough to choose by."""
    return weighed[0].exact >= _TELLING


def _flat(one: Weighed) -> dict[str, Any]:
    return asdict(one.candidate) | {"nll": one.nll, "gain": one.gain, "error": one.error, "exact": one.exact}
