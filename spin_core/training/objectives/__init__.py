"""The losses that a recipe can name. A new one is a class here and an entry in `recipe/losses.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from spin_core.training.objectives.absolute import Nca, Nce, Sppo
from spin_core.training.objectives.base import Newer, Objective, Pairs, Start
from spin_core.training.objectives.margins import Dpop, Hinge, Ipo, Sigmoid, SigmoidNorm

OBJECTIVES: dict[str, type[Objective]] = {kind.name: kind for kind in (Sigmoid, Hinge, Ipo, Nce, Nca, Sppo, Dpop, SigmoidNorm)}


def objective(settings: Mapping[str, Any]) -> Objective:
    """The objective that the recipe's training settings name, β as a number."""
    return OBJECTIVES[settings["loss"]].of(settings)


__all__ = ["OBJECTIVES", "Newer", "Objective", "Pairs", "Start", "objective"]
