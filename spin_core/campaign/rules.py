"""Which iteration of a campaign is next, and when there is none."""

from __future__ import annotations

from collections.abc import Sequence

from spin_core.campaign.ledger import Turn, settings_of
from spin_core.recipe import Recipe, StopSettings
from spin_core.selection.stage import nothing_won


def next_iteration(turns: Sequence[Turn], recipe: Recipe) -> tuple[int | None, str]:
    """The first iteration that was not played with this recipe, or None and the reason why there is nothing to do."""
    done = played(turns, recipe)
    if len(done) == len(recipe.iterations):
        return None, f"campaign {recipe.name} has all its {len(done)} iterations; add an entry to `iterations` to go on"
    if done and (reason := no_more_to_win(recipe.stop, done[-1])):
        return None, f"campaign {recipe.name} was stopped after iteration {len(done) - 1} by its stop rule: {reason}"
    return len(done), ""


def played(turns: Sequence[Turn], recipe: Recipe) -> list[Turn]:
    """The leading turns that were played with this recipe and whose results are there."""
    found = []
    for turn in turns[: len(recipe.iterations)]:
        if turn.recipe != settings_of(recipe, turn.iteration) or not turn.ref("evaluation").done or not turn.ref("model").done:
            break
        found.append(turn)
    return found


def no_more_to_win(stop: StopSettings, turn: Turn) -> str:
    """Why a campaign ends after this turn, with the key that would have it go on; empty where it goes on."""
    if stop.nothing_won and nothing_won(turn.ref("model")):
        return "its line search found no model better than the opponent; set stop.nothing_won=false to go on"
    before, after = (turn.metrics[who]["check_accuracy"] for who in ("before", "after"))
    if stop.min_accuracy_gain is None or before is None or after is None or after - before >= stop.min_accuracy_gain:
        return ""
    won = f"held-out checks went from {before:.1%} to {after:.1%}, a gain under {stop.min_accuracy_gain:.1%}"
    return f"{won}; change stop.min_accuracy_gain to go on"
