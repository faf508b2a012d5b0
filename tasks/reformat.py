"""Task: read the SFT data into prompts."""

from __future__ import annotations

from typing import Any

from spin_core.recipe import Recipe
from spin_core.sources import reformat as run
from spin_core.store import Store
from tasks.common import finished, stage


@stage("reformat data")
def reformat(store: Store, recipe: Recipe) -> Any:
    """read the SFT data into prompts."""
    return finished(lambda: run(store, recipe.data))
