"""Iterations of self-play until the recipe's last one, or until held-out data says that no more is to be won."""

from __future__ import annotations

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.iteration import Campaign
from flows.session import SHARDS_IN_FLIGHT, session
from spin_core.campaign.rules import end_of
from spin_core.recipe import Recipe
from spin_core.runtime.progress import tell


@flow(name="spin-campaign", task_runner=ThreadPoolTaskRunner(max_workers=SHARDS_IN_FLIGHT), persist_result=False, log_prints=False)
def spin_campaign(recipe: Recipe, overrides: list[str] | None = None, recipe_file: str | None = None, home: str | None = None) -> str:
    """Plays every iteration, until the recipe's last one or until its stop rule says that no more is to be won.

    Args:
        recipe: The recipe.
        overrides: Recipe keys to change, e.g. "training.beta=0.2".
        recipe_file: Path of a recipe file on the worker's machine, which is taken instead of the recipe.
        home: Where artifacts live; by default SPINFLOW_HOME, or ~/.spinflow.

    Returns the best model's folder.
    """
    with session(recipe_file or recipe, overrides, home) as run:
        campaign = Campaign(run)
        for iteration in range(len(run.recipe.iterations)):
            campaign = campaign.next()
            run.show(iteration)
            if reason := end_of(campaign.outcomes, run.recipe.stop):
                tell(f"iter-{iteration} · the campaign ends here", reason)
                break
        return campaign.best
