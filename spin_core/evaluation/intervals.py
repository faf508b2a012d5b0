"""Figures with their 95 % intervals: prompts are drawn again, the same ones for both players that are compared. Axis: N prompts."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_DRAWS = 2000
_AT_ONCE = 2**22  # numbers in memory
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A figure, with the ends of its interval where at least two prompts are there."""

    value: float
    low: float | None
    high: float | None
    prompts: int

    @property
    def half(self) -> float | None:
        """What stands behind ±: half the interval's width."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def interval(values_N: Values, weights_N: Values | None = None) -> Interval:
    """Σ values / Σ weights over prompts, a mean without weights; the same figures give the same interval again.

    A percentile bootstrap, widened by √(N / (N − 1)): of few prompts it is too narrow by that (Hesterberg 2015, 3.2).
    """
    weights_N = np.ones_like(values_N) if weights_N is None else weights_N
    count, value = len(values_N), float(values_N.sum() / weights_N.sum()) if len(values_N) else math.nan
    if count < 2:
        return Interval(value, None, None, count)
    if np.ptp(values_N / weights_N) == 0:  # drawn again, it is the same; scipy has no interval for that
        return Interval(value, value, value, count)
    from scipy.stats import bootstrap  # a second to import, and only finished turns need it

    found = bootstrap(
        (values_N, weights_N),
        lambda values, weights, axis: values.sum(axis) / weights.sum(axis),
        n_resamples=_DRAWS,
        batch=max(1, _AT_ONCE // count),
        vectorized=True,
        paired=True,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    wider = math.sqrt(count / (count - 1))
    return Interval(value, value - wider * (value - float(found.low)), value + wider * (float(found.high) - value), count)
