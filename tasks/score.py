"""Task: reference log-probs of the pairs under θ_t."""

from __future__ import annotations

from typing import Any

from spin_core.recipe import Recipe
from spin_core.scoring.stage import score as run
from spin_core.store import Ref, Store
from tasks.common import finished, stage


@stage("iter-{iteration} · score {splits}")
def score(store: Store, recipe: Recipe, iteration: int, model: Ref, pairs: Ref, splits: tuple[str, ...] = ("train", "test")) -> Any:
    """log-probs of the pairs under θ_t, the reference, or of the held-out ones under θ_{t+1}."""
    return finished(lambda: run(store, recipe, model, pairs, splits))
