"""Means with 95 % intervals: prompts drawn again within a seed, Student's t over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

# two-sided 95 % quantiles of Student's t by degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_DRAWS = 2000
Values = NDArray[np.float64]


class Interval(NamedTuple):
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def over_seeds(values: Sequence[float]) -> Interval:
    """Of one value a seed; with a single seed the interval is infinite."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    half = _T[min(len(values) - 2, len(_T) - 1)] * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def change(before: Any, after: Any, weights: Any = None, seed: int = 0) -> Interval:
    """after − before of a seed, in means over its prompts, the same prompts drawn again for both: a percentile bootstrap.

    With `weights` the mean is Σ values / Σ weights: nats an answer become nats a token.
    """
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    weight = np.ones_like(difference) if weights is None else np.asarray(weights, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(difference), (_DRAWS, len(difference)))
    found = difference[drawn].sum(1) / weight[drawn].sum(1)
    low, high = np.quantile(found, (0.025, 0.975))
    return Interval(float(difference.sum() / weight.sum()), float(low), float(high))
