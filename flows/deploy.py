"""The build step of prefect.yaml."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from spin_core.recipe import load_recipe


def recipe_parameters(path: str) -> dict[str, Any]:
    """The recipe of SPINFLOW_RECIPE, or of `path`, whole: every field has its value in the UI's form."""
    return {"recipe": load_recipe(Path(os.environ.get("SPINFLOW_RECIPE") or path)).model_dump(mode="json")}
