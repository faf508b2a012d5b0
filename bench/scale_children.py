"""The children of `bench.scale`: the scorer with a model that answers 0 at once, and the trainer up to its first batch."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from spin_core.runtime.process import job_main, peak_rss
from spin_core.scoring import job as scoring
from spin_core.training.plan import plan
from spin_core.training.rows import sizes_of, training_rows
from spin_core.training.trainer import collate_pairs


class NoModel(scoring.Scorer):
    """Every log-prob is 0."""

    def __init__(self, *_: Any) -> None:
        pass

    def batches(self, rows: scoring.Rows) -> list[list[int]]:
        """Those of a packed model."""
        return scoring._batches(rows, packed=True)

    def score(self, rows: scoring.Rows) -> tuple[list[float], list[float]]:
        """Nothing is computed."""
        return [0.0] * len(rows), [0.0] * len(rows)


def _first_batch(job: dict[str, Any]) -> None:
    """What each of eight training processes does before its first step, the model left out."""
    begun = time.perf_counter()
    rows = training_rows(Path(job["pairs"]), Path(job["reference"]), Path(job["work"]))
    sizes = sizes_of(rows)
    mapped = time.perf_counter()
    steps = plan(sizes, pairs_per_step=64, epochs=2, seed=0, group_rows=True, tokens=8192, world=8)
    saving = steps.saving(sizes)
    planned = time.perf_counter()
    batches = iter(DataLoader(rows, batch_sampler=steps.batches(0), collate_fn=collate_pairs))
    tokens = len(next(batches)["ids_T"])
    found = {"rows_s": mapped - begun, "plan_s": planned - mapped, "batch_s": time.perf_counter() - planned}
    found |= {"steps": len(steps.steps), "tokens": tokens, "saving": saving, "peak_mb": peak_rss() / 2**20}
    Path(job["out"]).write_text(json.dumps(found))


def _work(job: dict[str, Any]) -> None:
    scoring.Scorer = NoModel  # type: ignore[misc]
    (scoring._score if "shards" in job else _first_batch)(job)


if __name__ == "__main__":
    job_main(_work)
