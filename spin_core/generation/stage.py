"""Shards: which rows each holds, and the sampling of one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from spin_core.contracts.rows import SHARD
from spin_core.contracts.tables import write_rows
from spin_core.encoding.stage import encode
from spin_core.generation.pool import EnginePool
from spin_core.recipe import Recipe
from spin_core.runtime.progress import Progress, emit
from spin_core.store import Ref, Spec, Store

STAGE_VERSION = 1


@dataclass(frozen=True)
class ShardPlan:
    """Rows `start:stop` of one split, to be answered by one model."""

    index: int
    count: int
    total: int  # rows of the whole split
    label: str  # for people: the iteration
    split: str
    start: int
    stop: int
    model: Ref
    encoded: Ref
    spec: Spec


def plan(store: Store, recipe: Recipe, model: Ref, prompts: Ref, split: str, label: str = "") -> list[ShardPlan]:
    """Cuts the encoded rows of a split into shards of at most `generation.shard_rows` rows; none is empty."""
    encoded = encode(store, recipe, model, prompts)
    settings = recipe.generation
    total = pq.read_metadata(encoded.path / f"{split}.parquet").num_rows
    count = -(-total // settings.shard_rows)
    sampling = {key: getattr(settings, key) for key in ("engine", "max_new_tokens", "temperature", "top_p", "seed")}
    plans = []
    for index in range(count):
        start, stop = index * settings.shard_rows, min(total, (index + 1) * settings.shard_rows)
        params = {"split": split, "start": start, "stop": stop, **sampling}
        spec = Spec("shard", STAGE_VERSION, params, (model, encoded))
        plans.append(ShardPlan(index, count, total, label, split, start, stop, model, encoded, spec))
    return plans


def generate(store: Store, recipe: Recipe, shard: ShardPlan, pool: EnginePool) -> Ref:
    """Samples one answer a row. Raises ChildCrash if the engine dies; a retry starts it again and redoes this shard only."""

    name = f"{shard.label} · sampling {shard.split}".removeprefix(" · ")

    def write(staging: Path) -> dict[str, Any]:
        rows = _read_slice(shard.encoded.path / f"{shard.split}.parquet", shard.start, shard.stop)
        tokens = 0

        def on_answer(done: int, new_tokens: int) -> None:
            nonlocal tokens
            tokens += new_tokens
            pool.count(new_tokens)
            emit(Progress(name, done, shard.total, "rows", f"{pool.rate:,.0f} tokens/s", shard.index))

        with pool.lease(shard.model, len(rows)) as engine:
            started = time.time()
            answers = engine.sample([row["prompt_ids"] for row in rows], on_answer)
        content = [
            {
                "row_id": row["row_id"],
                "prompt_ids": row["prompt_ids"],
                "generated_ids": answer.ids,
                "finish_reason": answer.finish_reason,
                "generated": answer.text,
            }
            for row, answer in zip(rows, answers, strict=True)
        ]
        write_rows(staging / "shard.parquet", content, SHARD)
        return {"rows": len(rows), "tokens": tokens, "started": started, "ended": time.time()}

    ref = store.build(shard.spec, write)
    emit(Progress(name, shard.stop - shard.start, shard.total, "rows", f"{pool.rate:,.0f} tokens/s" if pool.rate else "", shard.index))
    return ref


def _read_slice(path: Path, start: int, stop: int) -> list[dict[str, Any]]:
    """Rows `start:stop`, reading no row group that holds none of them."""
    file = pq.ParquetFile(path)
    wanted: list[int] = []
    first = before = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        if before < stop and start < before + size:
            if not wanted:
                first = before
            wanted.append(group)
        before += size
    rows: list[dict[str, Any]] = file.read_row_groups(wanted, ["row_id", "prompt_ids"]).slice(start - first, stop - start).to_pylist()
    return rows
