"""Which iteration of a campaign is next, and when there is none."""

from __future__ import annotations

import json
import os
from typing import Any

from spin_core.recipe import Recipe, StopSettings
from spin_core.store import Ref, Store


def next_iteration(store: Store, recipe: Recipe) -> tuple[int | None, str]:
    """The first iteration that is not done, or None and the reason why there is nothing to do."""
    done = _done(store, recipe)
    if len(done) == len(recipe.iterations):
        return None, f"campaign {recipe.name} has all its {len(done)} iterations; add an entry to `iterations` to go on"
    if done and no_more_to_win(recipe.stop, done[-1]):
        return None, f"campaign {recipe.name} was stopped after iteration {len(done) - 1} by its stop rule; change `stop` to go on"
    return len(done), ""


def note_played(store: Store, recipe: Recipe, iteration: int) -> None:
    """Remembers with which recipe an iteration was played."""
    target = store.campaign_folder(recipe.name) / f"played-{iteration}.json"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(json.dumps(_settings(recipe, iteration)))
    os.replace(temporary, target)


def _done(store: Store, recipe: Recipe) -> list[Ref]:
    """The evaluations of the leading iterations that were played with this recipe."""
    folder = store.campaign_folder(recipe.name)
    found = []
    for iteration in range(len(recipe.iterations)):
        verdict = folder / f"iter-{iteration}" / "evaluation"
        played = folder / f"played-{iteration}.json"
        if not verdict.exists() or not played.exists() or json.loads(played.read_text()) != _settings(recipe, iteration):
            break
        found.append(Ref("evaluation", verdict.resolve().name, verdict.resolve()))
    return found


def _settings(recipe: Recipe, iteration: int) -> dict[str, Any]:
    """What the recipe says about one iteration and those before it: more of them may be added behind."""
    return recipe.model_dump(mode="json", exclude={"stop"}) | {"iterations": recipe.model_dump(mode="json")["iterations"][: iteration + 1]}


def no_more_to_win(stop: StopSettings, evaluation: Ref) -> bool:
    """Whether held-out check accuracy rose by less than the stop rule asks for."""
    metrics = json.loads((evaluation.path / "metrics.json").read_text())
    before, after = (metrics[who]["check_accuracy"] for who in ("before", "after"))
    if stop.min_accuracy_gain is None or before is None or after is None:
        return False
    return bool(after - before < stop.min_accuracy_gain)
