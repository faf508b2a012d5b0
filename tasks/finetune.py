"""Task: train θ_{t+1} from θ_t."""

from __future__ import annotations

from typing import Any

from spin_core.recipe import Recipe
from spin_core.store import Ref, Store
from spin_core.training.stage import finetune as run
from tasks.common import finished, stage


@stage("iter-{iteration} · fine-tune")
def finetune(store: Store, recipe: Recipe, iteration: int, model: Ref, pairs: Ref, reference: Ref) -> Any:
    """train θ_{t+1} from θ_t."""
    return finished(lambda: run(store, recipe, iteration, model, pairs, reference))
