"""`spinflow generate`: one fraction of a split answered by a model, as `loser_<frac>.jsonl`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spin_core.contracts.rows import ANSWERED, PROMPTS, row_id
from spin_core.contracts.tables import read_rows, write_rows
from spin_core.encoding.stage import Encode
from spin_core.generation.pool import EnginePool
from spin_core.generation.stage import Shard, shards
from spin_core.official.files import loser_file, open_pairs, write_lines
from spin_core.pairs.reading import real_side
from spin_core.players.stage import Import
from spin_core.recipe import Recipe
from spin_core.runtime.errors import BadInput, ChildCrash, SpinflowError
from spin_core.runtime.launcher import Launcher
from spin_core.runtime.progress import tell
from spin_core.sources.talk import BadRow
from spin_core.store import Ref, Spec, Store

if TYPE_CHECKING:
    from spin_core.cluster.machine import ClusterMachine

STAGE_VERSION = 3
_SHUFFLE_SEED = 42  # the official script's
_SHARDS_IN_FLIGHT = 8
_TRIES = 4


@dataclass(frozen=True)
class Fraction:
    """Rows `number·length` to `(number+1)·length` of a shuffled split; a length of 0 is all of it."""

    split: str
    number: int
    length: int

    def indices(self, rows: int) -> list[int]:
        """The row numbers in the source: those of `datasets.Dataset.shuffle(seed=42)`, so that fractions of both projects fit together."""
        shuffled: list[int] = np.random.default_rng(_SHUFFLE_SEED).permutation(rows).tolist()
        if not self.length:
            return shuffled
        return shuffled[self.number * self.length : (self.number + 1) * self.length]


def generate(store: Store, recipe: Recipe, fraction: Fraction, out: Path, cluster: ClusterMachine | None = None) -> Path:
    """Samples an answer to every prompt of the fraction and writes the file; what a killed run had finished is not sampled again."""
    with EnginePool(store, cluster.starts if cluster else None) as pool:
        on = Launcher(store, "generate", pool, cluster)
        prompts = on.build(FractionPrompts(recipe.data.name, fraction, store))
        model = on.build(Import(recipe.model, store.home))
        encoded = on.build(Encode.of(recipe, model, prompts))
        plans = shards(recipe, model, encoded, "train", f"{fraction.split} {fraction.number}")
        with ThreadPoolExecutor(_SHARDS_IN_FLIGHT) as threads:
            futures = [threads.submit(_sample, shard, on) for shard in plans]
        errors = {index: error for index, future in enumerate(futures) if (error := future.exception()) is not None}
    if errors:  # the other shards are done, and the next run does only these
        first = next(iter(errors.values()))
        if len(errors) == len(plans) or not isinstance(first, SpinflowError):
            raise first
        numbers = ", ".join(map(str, errors))
        raise SpinflowError(f"shards {numbers} of {len(plans)} failed: {first}", remedy="run again, only those are redone")
    answers = [future.result() for future in futures]
    store.verify(*answers)
    target = loser_file(out, fraction.number, fraction.split)
    lines = list(_lines(prompts, encoded, answers))
    write_lines(target, lines)
    left_out = prompts.facts["train"] - len(lines)
    note = f", {left_out:,} left out (prompt too long, or refused by the engine)" if left_out else ""
    tell("generate", f"{len(lines):,} answers in {target}{note}")
    return target


@dataclass(frozen=True)
class FractionPrompts:
    """The fraction's rows as `prompts`, all of them on the train side. The same row twice is answered once."""

    name: str
    fraction: Fraction
    store: Store
    label: str = "generate"

    def spec(self) -> Spec:
        """The data set and the fraction."""
        source, _ = open_pairs(self.store, self.name, self.fraction.split)
        fraction = {"split": self.fraction.split, "number": self.fraction.number, "length": self.fraction.length}
        return Spec("prompts", STAGE_VERSION, {"official": fraction | source.identity})

    def run(self, out: Path, on: Launcher) -> dict[str, Any]:
        """Chooses the rows here."""
        _, reader = open_pairs(self.store, self.name, self.fraction.split)
        rows = list(reader)
        found: dict[str, dict[str, Any]] = {}
        chosen = self._chosen(len(rows))
        for index in chosen:
            try:
                row = _prompt(real_side(rows[index]), self.name, index + 1)
            except BadRow as error:
                where = f"{self.name} {self.fraction.split} row {index + 1}"
                raise BadInput(f"{where}: {error}", remedy="mend it, or run spinflow reformat first") from None
            found.setdefault(row["row_id"], row)
        write_rows(out / "train.parquet", found.values(), PROMPTS)
        write_rows(out / "test.parquet", [], PROMPTS)
        copies = len(chosen) - len(found)
        message = f"{len(found):,} prompts of {self.name}" + (f", {copies:,} copies of a row left out" if copies else "")
        return {"rows": len(chosen), "train": len(found), "message": message}

    def _chosen(self, rows: int) -> list[int]:
        chosen = self.fraction.indices(rows)
        if not chosen:
            length = self.fraction.length
            what = f"{self.name} has {rows:,} {self.fraction.split} rows, none in fraction {self.fraction.number}"
            raise BadInput(what, remedy=f"the last fraction is {(rows - 1) // length if length else 0}")
        return chosen


def _prompt(messages: list[Any], name: str, number: int) -> dict[str, Any]:
    generated = [*messages[:-1], {"role": "assistant", "content": ""}]
    row = {"row_id": row_id(messages), "real": messages, "generated": generated, "source": name, "row_number": number}
    return row | {"check": None}


def _sample(shard: Shard, on: Launcher) -> Ref:
    for attempt in range(_TRIES):
        try:
            return on.build(shard)
        except ChildCrash:
            if attempt == _TRIES - 1:
                raise
            time.sleep(2**attempt)
    raise AssertionError


def _lines(prompts: Ref, encoded: Ref, answers: list[Ref]) -> Iterator[dict[str, Any]]:
    """The official columns, and the tokens, so that nothing has to be tokenised twice."""
    talks = {row["row_id"]: row["real"] for row in read_rows(prompts.path / "train.parquet", ["row_id", "real"])}
    real_ids = {row["row_id"]: row["real_ids"] for row in read_rows(encoded.path / "train.parquet", ["row_id", "real_ids"])}
    for shard in answers:
        for answer in read_rows(shard.path / "shard.parquet"):
            if answer["finish_reason"] in ANSWERED and answer["generated_ids"]:
                real = talks[answer["row_id"]]
                yield {
                    "real": real,
                    "generated": [*real[:-1], {"role": "assistant", "content": answer["generated"]}],
                    "row_id": answer["row_id"],
                    "prompt_ids": answer["prompt_ids"],
                    "real_ids": real_ids[answer["row_id"]],
                    "generated_ids": answer["generated_ids"],
                    "finish_reason": answer["finish_reason"],
                }
