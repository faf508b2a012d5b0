"""Which iteration of a campaign is next, and when there is none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spin_core.campaign.ledger import Turn, settings_of
from spin_core.recipe import Recipe, StopSettings


def next_iteration(turns: Sequence[Turn], recipe: Recipe) -> tuple[int | None, str]:
    """The first iteration that was not played with this recipe, or None and the reason why there is nothing to do."""
    done = played(turns, recipe)
    if len(done) == len(recipe.iterations):
        return None, f"campaign {recipe.name} has all its {len(done)} iterations; add an entry to `iterations` to go on"
    if done and no_more_to_win(recipe.stop, done[-1].metrics):
        return None, f"campaign {recipe.name} was stopped after iteration {len(done) - 1} by its stop rule; change `stop` to go on"
    return len(done), ""


def played(turns: Sequence[Turn], recipe: Recipe) -> list[Turn]:
    """The leading turns that were played with this recipe and whose results are there."""
    found = []
    for turn in turns[: len(recipe.iterations)]:
        if turn.recipe != settings_of(recipe, turn.iteration) or not turn.ref("evaluation").done or not turn.ref("model").done:
            break
        found.append(turn)
    return found


def no_more_to_win(stop: StopSettings, metrics: Mapping[str, Any]) -> bool:
    """Whether held-out check accuracy rose by less than the stop rule asks for."""
    before, after = (metrics[who]["check_accuracy"] for who in ("before", "after"))
    if stop.min_accuracy_gain is None or before is None or after is None:
        return False
    return bool(after - before < stop.min_accuracy_gain)
