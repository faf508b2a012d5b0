"""Task: reference log-probs of the pairs under θ_t."""

from __future__ import annotations

from typing import Any

from spin_core.recipe import Recipe
from spin_core.store import Ref, Store
from spin_core.training.score import score as run
from tasks.common import finished, stage


@stage("iter-{iteration} · score reference")
def score(store: Store, recipe: Recipe, iteration: int, model: Ref, pairs: Ref) -> Any:
    """reference log-probs of the pairs under θ_t."""
    return finished(lambda: run(store, recipe, model, pairs))
