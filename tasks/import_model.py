"""Task: import the SFT model that the campaign starts from."""

from __future__ import annotations

from typing import Any

from spin_core.players.stage import import_model as run
from spin_core.recipe import Recipe
from spin_core.store import Store
from tasks.common import finished, stage


@stage("import model")
def import_model(store: Store, recipe: Recipe) -> Any:
    """import the SFT model that the campaign starts from."""
    return finished(lambda: run(store, recipe.model))
