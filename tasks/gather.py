"""Task: join shards and human answers into pairs."""

from __future__ import annotations

from typing import Any

from spin_core.pairs.stage import gather as run
from spin_core.recipe import Recipe
from spin_core.store import Ref, Store
from tasks.common import finished, stage


@stage("iter-{iteration} · gather")
def gather(
    store: Store, recipe: Recipe, iteration: int, model: Ref, prompts: Ref, train: list[Ref], test: list[Ref], previous: Ref | None
) -> Any:
    """join shards and human answers into pairs."""
    return finished(lambda: run(store, recipe, iteration, model, prompts, train, test, previous))
