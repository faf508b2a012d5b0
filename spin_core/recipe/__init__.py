"""The recipe: everything that a person may set."""

from spin_core.recipe.evaluation import EvaluationSettings, HarnessSettings, JudgeSettings, StopSettings
from spin_core.recipe.load import load_recipe, with_overrides
from spin_core.recipe.schema import (
    ClusterSettings,
    DataSettings,
    GenerationSettings,
    ModelSettings,
    Recipe,
    StartPairs,
)
from spin_core.recipe.sft import SftSettings
from spin_core.recipe.training import TrainingSettings

__all__ = [
    "ClusterSettings",
    "DataSettings",
    "EvaluationSettings",
    "GenerationSettings",
    "HarnessSettings",
    "JudgeSettings",
    "ModelSettings",
    "Recipe",
    "SftSettings",
    "StartPairs",
    "StopSettings",
    "TrainingSettings",
    "load_recipe",
    "with_overrides",
]
