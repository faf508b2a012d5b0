"""Shards to pairs: proof of completeness, carry-over, statistics."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from spin_core.encode import encode
from spin_core.errors import BadInput, Corrupt
from spin_core.recipe import Recipe
from spin_core.rows import PAIRS, read_rows, write_rows
from spin_core.store import Ref, Spec, Store

STAGE_VERSION = 1
TRAIN_FILE = "train_prefs-00000-of-00001.parquet"
TEST_FILE = "test_prefs-00000-of-00001.parquet"


def gather(
    store: Store, recipe: Recipe, iteration: int, model: Ref, prompts: Ref, train: list[Ref], test: list[Ref], previous: Ref | None
) -> Ref:
    """Joins the shards with the human answers into the iteration's pairs.

    From iteration 1 on, `previous`'s own pairs (those of its iteration, not what it carried) are mixed into train, as in the
    paper's iter0+1, iter1+2, …. Pairs whose two answers are the same tokens have no gradient and are left out of train.
    """
    encoded = encode(store, recipe, model, prompts)
    carried = previous if previous is not None and recipe.carry_over else None
    parents = (model, encoded, *train, *test, *([carried] if carried else []))
    params = {"iteration": iteration}
    spec = Spec("pairs", STAGE_VERSION, params, parents)

    def write(staging: Path) -> dict[str, Any]:
        for shard in (*train, *test):
            store.verify(shard)
        facts: dict[str, Any] = {}
        fresh = _join(iteration, prompts, encoded, train, "train")
        held_out = _join(iteration, prompts, encoded, test, "test")
        kept = [row for row in fresh if row["real_ids"] != row["generated_ids"]]
        carried_rows = [r for r in read_rows(carried.path / TRAIN_FILE) if r["iteration"] == iteration - 1] if carried else []
        if not kept:
            raise BadInput(
                f"iteration {iteration}: every sampled answer equals the human one", remedy="there is nothing left to learn from this data"
            )
        facts["pairs"] = write_rows(staging / TRAIN_FILE, kept + carried_rows, PAIRS)
        facts["held_out"] = write_rows(staging / TEST_FILE, held_out, PAIRS)
        facts["identical"] = len(fresh) - len(kept)
        facts["carried"] = len(carried_rows)
        return facts

    return store.build(spec, write)


def _join(iteration: int, prompts: Ref, encoded: Ref, shards: list[Ref], split: str) -> list[dict[str, Any]]:
    """Every encoded row with its answer; raises Corrupt where one is missing, foreign or there twice."""
    answers = [row for shard in shards for row in read_rows(shard.path / "shard.parquet")]
    by_id = {row["row_id"]: row for row in answers}
    wanted = {row["row_id"]: row for row in read_rows(encoded.path / f"{split}.parquet")}
    prove_complete([row["row_id"] for row in answers], list(wanted), split)
    pairs = []
    for prompt in read_rows(prompts.path / f"{split}.parquet"):
        ids = wanted.get(prompt["row_id"])
        answer = by_id.get(prompt["row_id"])
        if ids is None or answer is None or answer["finish_reason"] not in {"stop", "length"} or not answer["generated_ids"]:
            continue  # too long, or refused by the engine: recorded in `encoded` and `shard` with the reason
        if list(ids["prompt_ids"]) != list(answer["prompt_ids"]):
            raise Corrupt(f"gather: row {prompt['row_id']} was sampled from other prompt tokens", remedy="run generate again")
        pairs.append(
            {
                **{key: prompt[key] for key in ("row_id", "real", "check")},
                **{key: answer[key] for key in ("prompt_ids", "generated_ids", "finish_reason")},
                "iteration": iteration,
                "generated": [*prompt["real"][:-1], {"role": "assistant", "content": answer["generated"]}],
                "real_ids": ids["real_ids"],
            }
        )
    return pairs


def prove_complete(found: list[str], wanted: list[str], split: str) -> None:
    """Raises Corrupt, naming the first row, unless `found` holds every id of `wanted` exactly once."""
    counts, expected = Counter(found), set(wanted)
    problems = {
        "are missing": [row_id for row_id in wanted if row_id not in counts],
        "are not in the prompts": [row_id for row_id in counts if row_id not in expected],
        "are there twice": [row_id for row_id, count in counts.items() if count > 1],
    }
    for problem, ids in problems.items():
        if ids:
            raise Corrupt(f"gather: {len(ids):,} of {len(wanted):,} {split} rows {problem}, first {ids[0]}", remedy="run generate again")
