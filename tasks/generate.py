"""Task: sample one shard of the opponent's answers."""

from __future__ import annotations

from typing import Any

from spin_core.generation.pool import EnginePool
from spin_core.generation.stage import ShardPlan
from spin_core.generation.stage import generate as run
from spin_core.recipe import Recipe
from spin_core.store import Store
from tasks.common import finished, stage


@stage("{label} · {shard.split} shard {shard.index:03d}/{shard.count:03d}")
def generate(store: Store, recipe: Recipe, shard: ShardPlan, pool: EnginePool, label: str) -> Any:
    """sample one shard of the opponent's answers."""
    return finished(lambda: run(store, recipe, shard, pool))
