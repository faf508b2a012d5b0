"""The stage `shard`: which rows each holds, and the sampling of one."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.contracts.rows import SHARD
from spin_core.contracts.tables import RowReader, count_rows, write_rows
from spin_core.encoding.ends import read_ends
from spin_core.generation.engine import Sampler
from spin_core.recipe import Recipe
from spin_core.recipe.identity import identity
from spin_core.runtime.launcher import Launcher
from spin_core.runtime.progress import Progress, emit
from spin_core.store import Ref, Spec

STAGE_VERSION = 3


@dataclass(frozen=True)
class Shard:
    """Rows `start:stop` of one split, to be answered by one model."""

    index: int
    count: int
    total: int  # rows of the whole split
    turn: str  # for people: the iteration
    split: str
    start: int
    stop: int
    sampler: Sampler
    encoded: Ref

    @property
    def label(self) -> str:
        """See `Stage`."""
        return f"{self.turn} · {self.split} shard {self.index:03d}/{self.count:03d}"

    def spec(self) -> Spec:
        """The rows, and how they are sampled."""
        params = {"split": self.split, "start": self.start, "stop": self.stop, "generation": identity(self.sampler.settings)}
        return Spec("shard", STAGE_VERSION, params, (self.sampler.model, self.encoded))

    def run(self, out: Path, on: Launcher) -> dict[str, Any]:
        """Samples one answer a row. Raises ChildCrash if the engine dies; a retry starts it again and redoes this shard only."""
        rows = _read_slice(self.encoded.path / f"{self.split}.parquet", self.start, self.stop)
        tokens = 0

        def on_answer(done: int, new_tokens: int) -> None:
            nonlocal tokens
            tokens += new_tokens
            on.engines.count(new_tokens)
            self.show(done, on)

        with on.engines.lease(self.sampler, len(rows)) as engine:
            started = time.time()
            answers = engine.sample([row["prompt_ids"] for row in rows], read_ends(self.encoded.path), on_answer)
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
        write_rows(out / "shard.parquet", content, SHARD)
        facts = {"rows": len(rows), "tokens": tokens, "started": started, "ended": time.time()}
        given = self.sampler.settings.engine_args
        return facts | ({"engine_args": given} if given else {})

    def show(self, done: int, on: Launcher) -> None:
        """Tells how many of its rows are answered."""
        note = f"{on.engines.rate:,.0f} tokens/s" if on.engines.rate else ""
        emit(Progress(f"{self.turn} · sampling {self.split}", done, self.total, "rows", note, self.index))


def shards(recipe: Recipe, model: Ref, encoded: Ref, split: str, turn: str, total: int | None = None) -> list[Shard]:
    """Cuts the encoded rows of a split (`total`, where they are not there yet) into shards of at most `generation.shard_rows`."""
    sampler = Sampler(model, recipe.generation, recipe.data.max_prompt_tokens)
    if total is None:
        total = count_rows(encoded.path / f"{split}.parquet")
    size = recipe.generation.shard_rows
    count = -(-total // size)
    return [Shard(i, count, total, turn, split, i * size, min(total, (i + 1) * size), sampler, encoded) for i in range(count)]


def _read_slice(path: Path, start: int, stop: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = RowReader(path, ["row_id", "prompt_ids"]).read(start, stop).to_pylist()
    return rows
