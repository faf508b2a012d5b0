"""Task: compare θ_t and θ_{t+1} on held-out rows."""

from __future__ import annotations

from typing import Any

from spin_core.evaluation.stage import evaluate as run
from spin_core.recipe import Recipe
from spin_core.store import Ref, Store
from tasks.common import finished, stage


@stage("iter-{iteration} · evaluate")
def evaluate(
    store: Store,
    recipe: Recipe,
    iteration: int,
    pairs: Ref,
    reference: Ref,
    scored: Ref,
    old_answers: list[Ref],
    new_answers: list[Ref],
) -> Any:
    """compare θ_t and θ_{t+1} on held-out rows."""
    return finished(lambda: run(store, recipe, iteration, pairs, reference, scored, old_answers, new_answers))
