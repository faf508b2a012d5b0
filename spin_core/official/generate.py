"""`spinflow generate`: one fraction of a split answered by a model, as `loser_<frac>.jsonl`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spin_core.contracts.rows import PROMPTS, row_id
from spin_core.contracts.tables import read_rows, write_rows
from spin_core.generation.pool import EnginePool
from spin_core.generation.stage import ShardPlan, plan
from spin_core.generation.stage import generate as sample
from spin_core.official.files import loser_file, open_pairs, real_side, write_lines
from spin_core.players.stage import import_model
from spin_core.recipe import Recipe
from spin_core.runtime.errors import BadInput, ChildCrash, SpinflowError
from spin_core.runtime.progress import tell
from spin_core.sources.shapes import BadRow
from spin_core.store import Ref, Spec, Store

STAGE_VERSION = 1
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


def generate(store: Store, recipe: Recipe, fraction: Fraction, out: Path) -> Path:
    """Samples an answer to every prompt of the fraction and writes the file; what a killed run had finished is not sampled again."""
    prompts = fraction_prompts(store, recipe.data.name, fraction)
    model = import_model(store, recipe.model)
    with EnginePool(store, recipe) as pool:
        plans = plan(store, recipe, model, prompts, "train", f"{fraction.split} {fraction.number}")
        with ThreadPoolExecutor(_SHARDS_IN_FLIGHT) as threads:
            futures = [threads.submit(_sample, store, recipe, shard, pool) for shard in plans]
        errors = {index: error for index, future in enumerate(futures) if (error := future.exception()) is not None}
    if errors:  # the other shards are done, and the next run does only these
        first = next(iter(errors.values()))
        if len(errors) == len(plans) or not isinstance(first, SpinflowError):
            raise first
        numbers = ", ".join(map(str, errors))
        raise SpinflowError(f"shards {numbers} of {len(plans)} failed: {first}", remedy="run again, only those are redone")
    shards = [future.result() for future in futures]
    store.verify(*shards)
    target = loser_file(out, fraction.number, fraction.split)
    lines = list(_lines(prompts, plans[0].encoded, shards))
    write_lines(target, lines)
    left_out = prompts.facts["train"] - len(lines)
    note = f", {left_out:,} left out (prompt too long, or refused by the engine)" if left_out else ""
    tell("generate", f"{len(lines):,} answers in {target}{note}")
    return target


def fraction_prompts(store: Store, name: str, fraction: Fraction) -> Ref:
    """The fraction's rows as `prompts`, all of them on the train side. The same row twice is answered once."""
    source, reader = open_pairs(store, name, fraction.split)
    params = {"split": fraction.split, "number": fraction.number, "length": fraction.length, **source.identity}

    def write(staging: Path) -> dict[str, Any]:
        rows = list(reader)
        chosen = fraction.indices(len(rows))
        if not chosen:
            last = (len(rows) - 1) // fraction.length if fraction.length else 0
            raise BadInput(
                f"{name} has {len(rows):,} {fraction.split} rows, none in fraction {fraction.number}", remedy=f"the last fraction is {last}"
            )
        found: dict[str, dict[str, Any]] = {}
        for index in chosen:
            try:
                row = _prompt(real_side(rows[index]), name)
            except BadRow as error:
                raise BadInput(
                    f"{name} {fraction.split} row {index + 1}: {error}", remedy="mend it, or run spinflow reformat first"
                ) from None
            found.setdefault(row["row_id"], row)
        write_rows(staging / "train.parquet", found.values(), PROMPTS)
        write_rows(staging / "test.parquet", [], PROMPTS)
        return {"rows": len(chosen), "train": len(found)}

    ref = store.build(Spec("prompts", STAGE_VERSION, {"official": params}), write)
    copies = ref.facts["rows"] - ref.facts["train"]
    tell("generate", f"{ref.facts['train']:,} prompts of {name}" + (f", {copies:,} copies of a row left out" if copies else ""))
    return ref


def _prompt(messages: list[Any], name: str) -> dict[str, Any]:
    empty = {"role": "assistant", "content": ""}
    return {"row_id": row_id(messages), "real": messages, "generated": [*messages[:-1], empty], "source": name, "check": None}


def _sample(store: Store, recipe: Recipe, shard: ShardPlan, pool: EnginePool) -> Ref:
    for attempt in range(_TRIES):
        try:
            return sample(store, recipe, shard, pool)
        except ChildCrash:
            if attempt == _TRIES - 1:
                raise
            time.sleep(2**attempt)
    raise AssertionError


def _lines(prompts: Ref, encoded: Ref, shards: list[Ref]) -> Iterator[dict[str, Any]]:
    """The official columns, and the tokens, so that nothing has to be tokenised twice."""
    talks = {row["row_id"]: row["real"] for row in read_rows(prompts.path / "train.parquet", ["row_id", "real"])}
    real_ids = {row["row_id"]: row["real_ids"] for row in read_rows(encoded.path / "train.parquet", ["row_id", "real_ids"])}
    for shard in shards:
        for answer in read_rows(shard.path / "shard.parquet"):
            if answer["finish_reason"] in {"stop", "length"} and answer["generated_ids"]:
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
