"""Scores as their readers take them."""

from __future__ import annotations

from pathlib import Path

from spin_core.contracts.tables import read_rows
from spin_core.runtime.errors import Corrupt

Scores = dict[tuple[str, int], tuple[float, float]]  # (row_id, iteration) → (real, generated), nats


def load_scores(path: Path, pairs: Path | None = None) -> Scores:
    """The scores by pair. With `pairs`, raises Corrupt unless exactly its rows are scored."""
    scores = {(r["row_id"], r["iteration"]): (r["real_logp"], r["generated_logp"]) for r in read_rows(path)}
    if pairs is not None:
        wanted = {(r["row_id"], r["iteration"]) for r in read_rows(pairs, ["row_id", "iteration"])}
        if wanted != set(scores):
            odd = sorted(wanted ^ set(scores))[0]
            raise Corrupt(
                f"{path}: {len(wanted ^ set(scores))} rows are missing or foreign, first {odd[0]}", remedy="run again to score anew"
            )
    return scores
