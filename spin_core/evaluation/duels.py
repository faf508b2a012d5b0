"""What a judge's preferences say: the win rate, and the one that is left where answers are equally long. Axis: N prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from spin_core.evaluation.intervals import Values, interval

_RIDGE = 0.01  # holds the fit where every answer won
_DRAWS = 200


def duel(folder: Path, split: str) -> dict[str, Any]:
    """`won` with its interval, and `length_controlled`."""
    table = pq.read_table(folder / f"{split}.parquet")
    table = table.filter(table["won"].is_valid())
    won_N, longer_N = table["won"].to_numpy(), (table["new_length"].to_numpy() - table["old_length"].to_numpy()).astype(np.float64)
    found = {"won": interval(won_N).as_dict()}
    if len(won_N) > 1:
        dice, rows = np.random.default_rng(0), np.arange(len(won_N))
        draws = [length_controlled(won_N[drawn], longer_N[drawn]) for drawn in (dice.choice(rows, len(rows)) for _ in range(_DRAWS))]
        low, high = np.quantile(draws, (0.025, 0.975))
        value = length_controlled(won_N, longer_N)
        found["length_controlled"] = {"value": value, "low": float(low), "high": float(high), "prompts": len(won_N)}
    return found


def length_controlled(won_N: Values, longer_N: Values) -> float:
    """The win rate at equal lengths: σ(a) of won = σ(a + b · tanh(Δ length / its spread)), by maximum likelihood with a small ridge.

    AlpacaEval 2's regression (arXiv 2404.04475, eq. 2) without its term for the prompt's difficulty, which needs many models' answers.
    """
    from scipy.optimize import minimize

    spread = longer_N.std()
    x_N = np.tanh(longer_N / spread) if spread else np.zeros_like(longer_N)

    def loss(weights: Values) -> float:
        z_N = weights[0] + weights[1] * x_N
        return float(np.logaddexp(0.0, z_N).mean() - (won_N * z_N).mean() + _RIDGE * (weights**2).sum() / len(won_N))

    return float(1.0 / (1.0 + np.exp(-minimize(loss, np.zeros(2)).x[0])))
