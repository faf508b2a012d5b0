"""The stage `shard`: which rows each holds, and the sampling of one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from spin_core.contracts.rows import GREEDY, SHARD
from spin_core.contracts.tables import RowReader, count_rows, id_lists, write_rows
from spin_core.encoding.ends import read_ends
from spin_core.generation.engine import Prompt, Sampler
from spin_core.generation.sampling import seed_of
from spin_core.recipe import Recipe
from spin_core.recipe.identity import identity
from spin_core.runtime.launcher import Launcher
from spin_core.runtime.progress import Progress, emit
from spin_core.store import Ref, Spec

STAGE_VERSION = 4

# All shards' tables are read and written in one thread: Arrow has memory of its own in each that it was called in, and a shard's thread,
# of which there are hundreds, would take it for one table. So the reader needs no lock either.
_tables = ThreadPoolExecutor(1, "shard-tables")


@dataclass(frozen=True)
class Shard:
    """Rows `start:stop` of one split, to be answered by one model: each `samples` times, and once more where `greedy`."""

    index: int
    count: int
    total: int  # rows of the whole split
    turn: str  # for people: the iteration
    split: str
    start: int
    stop: int
    sampler: Sampler
    encoded: Ref
    player: int = 0  # t of θ_t, for the seeds
    samples: int = 1
    logps: bool = False  # whether the answers' log-probs are kept
    first: int = 0  # the number of the first sample; those before it are in another shard
    greedy: bool = False  # whether an answer of the most likely tokens is asked for, too

    @property
    def label(self) -> str:
        """See `Stage`."""
        return f"{self.turn} · {self._what} shard {self.index:03d}/{self.count:03d}"

    def spec(self) -> Spec:
        """The rows, and how they are sampled."""
        params: dict[str, Any] = {"split": self.split, "start": self.start, "stop": self.stop, "player": self.player}
        params["generation"] = identity(self.sampler.settings, without={"samples_per_prompt"})
        if self.samples > 1:
            params["generation"]["samples_per_prompt"] = self.samples
        if self.first or self.greedy:
            params |= {"samples": self.samples, "first": self.first, "greedy": self.greedy}
        return Spec("shard", STAGE_VERSION, params, (self.sampler.model, self.encoded))

    def run(self, out: Path, on: Launcher) -> dict[str, Any]:
        """Samples the answers. Raises ChildCrash if the engine dies; a retry starts it again and redoes this shard only."""
        tokens = 0

        def on_answer(done: int, new_tokens: int) -> None:
            nonlocal tokens
            tokens += new_tokens
            on.engines.count(new_tokens)
            self.show(done, on)

        with on.engines.lease(self.sampler, (self.stop - self.start) * len(self._numbers)) as engine:
            # not before: hundreds of shards wait, and a million prompts are gigabytes
            rows = _tables.submit(_read_slice, self.encoded.path / f"{self.split}.parquet", self.start, self.stop).result()
            prompts = [prompt for row in rows for prompt in self._prompts(row)]
            started = time.time()
            answers = engine.sample(prompts, read_ends(self.encoded.path), on_answer)
        asked = [(row, sample) for row in rows for sample in self._numbers]
        content = [
            {
                "row_id": row["row_id"],
                "sample": sample,
                "prompt_ids": row["prompt_ids"],
                "generated_ids": answer.ids,
                "finish_reason": answer.finish_reason,
                "generated": answer.text,
                "logp": answer.logp,
            }
            for (row, sample), answer in zip(asked, answers, strict=True)
        ]
        _tables.submit(write_rows, out / "shard.parquet", content, SHARD).result()
        facts = {"rows": len(rows), "tokens": tokens, "started": started, "ended": time.time()}
        given = self.sampler.settings.engine_args
        return facts | ({"engine_args": given} if given else {}) | ({"node": engine.where} if engine.where else {})

    @property
    def _numbers(self) -> list[int]:
        """Of a row's answers, in their order."""
        return [*range(self.first, self.first + self.samples), *([GREEDY] if self.greedy else [])]

    @property
    def _what(self) -> str:
        return f"more {self.split}" if self.first or self.greedy else self.split

    def _prompts(self, row: Mapping[str, Any]) -> list[Prompt]:
        seed = seed_of(self.sampler.settings.seed, row["row_id"], self.player)
        drawn = [Prompt(row["prompt_ids"], seed + self.first, self.samples, self.logps)] if self.samples else []
        return drawn + ([Prompt(row["prompt_ids"], seed, 1, self.logps, greedy=True)] if self.greedy else [])

    def show(self, done: int, on: Launcher) -> None:
        """Tells how many of its answers are there."""
        note = f"{on.engines.rate:,.0f} tokens/s" if on.engines.rate else ""
        emit(
            Progress(
                f"{self.turn} · sampling {self._what}",
                done,
                self.total * len(self._numbers),
                "answers" if len(self._numbers) > 1 else "rows",
                note,
                self.index,
            )
        )


def shards(
    recipe: Recipe, model: Ref, encoded: Ref, split: str, turn: str, total: int | None = None, player: int = 0, more: bool = False
) -> list[Shard]:
    """Cuts the encoded rows of a split (`total`, where they are not there yet) into shards of at most `generation.shard_rows`.

    `model` is θ_t of t = `player`. Train rows are answered `generation.samples_per_prompt` times, held-out ones once; all that
    `evaluation` wants beyond that are the shards with `more`, so that another number of them changes no pair. Log-probs are kept
    of the answers to held-out rows, which evaluation takes the player's entropy from.
    """
    sampler = Sampler(model, recipe.generation, recipe.data.max_prompt_tokens)
    if total is None:
        total = count_rows(encoded.path / f"{split}.parquet")
    size = recipe.generation.shard_rows
    count = -(-total // size)
    held_out = split != "train"
    samples, first = 1 if held_out else recipe.generation.samples_per_prompt, 0
    if more:
        samples, first = recipe.evaluation.samples - 1, 1
    greedy = more and recipe.evaluation.greedy
    if not samples and not greedy:
        return []
    ranges = [(i * size, min(total, (i + 1) * size)) for i in range(count)]
    return [
        Shard(i, count, total, turn, split, start, stop, sampler, encoded, player, samples, held_out, first, greedy)
        for i, (start, stop) in enumerate(ranges)
    ]


def busy_seconds(facts: Iterable[Mapping[str, Any]]) -> float:
    """Seconds in which at least one of these shards was sampled: they overlap on one engine."""
    covered, end = 0.0, float("-inf")
    for start, stop in sorted((shard["started"], shard["ended"]) for shard in facts):
        covered += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return covered


def _read_slice(path: Path, start: int, stop: int) -> list[dict[str, Any]]:
    found = path.stat()
    table = _reader(path, found.st_ino, found.st_mtime_ns).read(start, stop)
    ids = table["row_id"].to_pylist()
    return [{"row_id": row, "prompt_ids": prompt} for row, prompt in zip(ids, id_lists(table["prompt_ids"]), strict=True)]


@lru_cache(maxsize=1)  # it keeps the row group that it read last, and the next shard's rows are mostly in it
def _reader(path: Path, _file: int, _changed: int) -> RowReader:
    return RowReader(path, ["row_id", "prompt_ids"])
