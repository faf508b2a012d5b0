"""Iterations of self-play until the recipe's last one, or until held-out data says that no more is to be won."""

from __future__ import annotations

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.iteration import Played, play
from flows.session import SHARDS_IN_FLIGHT, session
from spin_core.campaign.rules import no_more_to_win
from spin_core.recipe import Recipe
from spin_core.runtime.progress import tell
from tasks.report import report


@flow(name="spin-campaign", task_runner=ThreadPoolTaskRunner(max_workers=SHARDS_IN_FLIGHT), persist_result=False, log_prints=False)
def spin_campaign(recipe: Recipe, overrides: list[str] | None = None, recipe_file: str | None = None, home: str | None = None) -> str:
    """Plays every iteration, until the recipe's last one or until its stop rule says that no more is to be won.

    Args:
        recipe: The recipe.
        overrides: Recipe keys to change, e.g. "training.beta=0.2".
        recipe_file: Path of a recipe file on the worker's machine, which is taken instead of the recipe.
        home: Where artifacts live; by default SPINFLOW_HOME, or ~/.spinflow.

    Returns the newest model's folder.
    """
    with session(recipe_file or recipe, overrides, home) as run:
        played: Played | None = None
        for iteration in range(len(run.recipe.iterations)):
            played = play(run, iteration, played)
            report(run.store, run.recipe, iteration)
            if reason := no_more_to_win(run.recipe.stop, run.ledger.turns()[iteration]):
                tell(f"iter-{iteration} · the campaign ends here", reason)
                break
        assert played is not None  # a recipe has at least one iteration
        return str(played.model.path)
