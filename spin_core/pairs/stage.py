"""Shards to pairs: proof of completeness, carry-over, statistics.

Prompts, encoded rows and shards are in one order, so pairs are made by walking all three side by side, in Arrow tables: no
index over the rows, and memory for a few thousand of them. Run as a child, so that the flow's memory stays small.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spin_core.encoding.stage import encode
from spin_core.recipe import Recipe
from spin_core.runtime import process
from spin_core.runtime.progress import tell
from spin_core.store import Ref, Spec, Store

STAGE_VERSION = 2


def gather(
    store: Store, recipe: Recipe, iteration: int, model: Ref, prompts: Ref, train: list[Ref], test: list[Ref], previous: Ref | None
) -> Ref:
    """Joins the shards with the human answers into the iteration's pairs.

    From iteration 1 on, `previous`'s own pairs (those of its iteration, not what it carried) are mixed into train, as in the
    paper's iter0+1, iter1+2, …. Pairs whose two answers are the same tokens have no gradient and are left out of train.
    Raises Corrupt, after setting them aside, where files do not match their checksums.
    """
    encoded = encode(store, recipe, model, prompts)
    return join(store, iteration, model, prompts, encoded, train, test, previous if recipe.carry_over else None)


def join(
    store: Store, iteration: int, model: Ref, prompts: Ref, encoded: Ref, train: list[Ref], test: list[Ref], carried: Ref | None
) -> Ref:
    """`gather` for prompts that are encoded already."""
    parents = (model, encoded, *train, *test, *([carried] if carried else []))
    spec = Spec("pairs", STAGE_VERSION, {"iteration": iteration}, parents)

    def write(staging: Path) -> dict[str, Any]:
        store.verify(*train, *test, prompts, encoded, *([carried] if carried else []))
        job: dict[str, Any] = {"iteration": iteration, "prompts": str(prompts.path), "encoded": str(encoded.path), "out": str(staging)}
        job |= {split: [str(shard.path) for shard in shards] for split, shards in (("train", train), ("test", test))}
        job["carried"] = str(carried.path) if carried else None
        process.run_job("spin_core.pairs.job", job, store.log_path(f"gather-{spec.digest}"), name=f"iter-{iteration} · gathering the pairs")
        facts: dict[str, Any] = json.loads((staging / "facts.json").read_text())
        (staging / "facts.json").unlink()
        return facts

    ref = store.build(spec, write)
    tell(f"iter-{iteration} · pairs", ref.facts["message"])
    return ref
