"""Reference scoring: the log-probs of both answers under one model, once, as an artifact.

Training then holds no second model. The official trainer runs a frozen copy at every step instead.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spin_core.contracts.rows import TEST_FILE, TRAIN_FILE
from spin_core.contracts.tables import read_rows
from spin_core.recipe import Recipe
from spin_core.runtime import devices, process
from spin_core.runtime.errors import Corrupt
from spin_core.store import Ref, Spec, Store

STAGE_VERSION = 2
_FILES = {"train": (TRAIN_FILE, "scores.parquet"), "test": (TEST_FILE, "test_scores.parquet")}
Scores = dict[tuple[str, int], tuple[float, float]]  # (row_id, iteration) → (real, generated), nats


def score(store: Store, recipe: Recipe, model: Ref, pairs: Ref, splits: Sequence[str] = ("train", "test")) -> Ref:
    """`scores.parquet` (train) and `test_scores.parquet` (held-out) of `pairs` under `model`, or one of them."""
    params: dict[str, Any] = {"precision": recipe.training.precision, "splits": sorted(splits)}
    quantize = recipe.training.lora and recipe.training.lora.quantize
    if quantize and "train" in splits:
        params["quantize"] = {_FILES["train"][1]: quantize}  # what training starts from; held-out rows are for the full model
    spec = Spec("reference", STAGE_VERSION, params, (model, pairs))

    def write(staging: Path) -> dict[str, Any]:
        job: dict[str, Any] = {"model": str(model.path), "out": str(staging), "quantize": {}, **params}
        job["attention"] = recipe.training.attention
        job["files"] = {str(pairs.path / _FILES[split][0]): _FILES[split][1] for split in splits}
        group = devices.visible()[:1]
        log = store.log_path(f"score-{spec.digest}")
        with devices.hold(group) as held:
            process.run_job("spin_core.scoring.job", job, log, name="scoring", env=devices.environment(group), fds=held.fds)
        for source, target in job["files"].items():
            load_scores(staging / target, Path(source))
        facts: dict[str, Any] = json.loads((staging / "facts.json").read_text())
        (staging / "facts.json").unlink()
        return facts

    return store.build(spec, write)


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
