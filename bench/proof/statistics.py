"""Means with 95 % intervals: prompts drawn again within a seed, Student's t over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from spin_core.evaluation.intervals import interval

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
    quantile = float(student.ppf(0.975, len(values) - 1))
    half = quantile * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def change(before: Any, after: Any, weights: Any = None) -> Interval:
    """after − before of a seed, in means over its prompts, the same prompts drawn again for both.

    With `weights` the mean is Σ values / Σ weights: nats an answer become nats a token.
    """
    difference = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    found = interval(difference, None if weights is None else np.asarray(weights, dtype=np.float64))
    assert found.low is not None
    assert found.high is not None
    return Interval(found.value, found.low, found.high)
