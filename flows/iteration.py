"""Turns of self-play, one after the other; the order of a turn's stages is in `spin_core/campaign/walk.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from prefect import flow, tags
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.session import SHARDS_IN_FLIGHT, Session, session
from flows.watch import label_run
from spin_core.campaign.rules import Outcome, best_player, next_iteration, next_opponent
from spin_core.campaign.walk import Played, walk
from spin_core.campaign.workspace import link
from spin_core.recipe import Recipe
from spin_core.runtime.errors import BadInput
from spin_core.runtime.progress import tell


@dataclass(frozen=True)
class Campaign:
    """The turns that this run has played or found."""

    run: Session
    played: Played = field(default_factory=Played)
    outcomes: tuple[Outcome, ...] = ()

    def next(self) -> Campaign:
        """Plays one more turn, in the order of `campaign.walk`, and writes it down. What is done already is found, not redone."""
        run, iteration, stop = self.run, len(self.outcomes), self.run.recipe.stop
        opponent = next_opponent(self.outcomes, stop)
        if opponent != iteration:
            tell(f"iter-{iteration} · back to the best", f"θ_{iteration} is worse than its opponent; this turn starts from θ_{opponent}")
        with tags(f"campaign:{run.recipe.name}", f"iteration:{iteration}"):
            played = walk(run.turn(iteration), run, self.played, opponent)
        run.ledger.note(iteration, run.recipe, played.made, opponent)
        link(run.store, run.recipe.name, stop)
        return Campaign(run, played, (*self.outcomes, Outcome.of(run.ledger.turns()[iteration])))

    @property
    def best(self) -> str:
        """Where the best model is."""
        return self.played.players[best_player(self.outcomes, self.run.recipe.stop)].model.place


@flow(name="spin-iteration", task_runner=ThreadPoolTaskRunner(max_workers=SHARDS_IN_FLIGHT), persist_result=False, log_prints=False)
def spin_iteration(
    recipe: Recipe,
    iteration: Annotated[int, Field(ge=0)] | None = None,
    overrides: list[str] | None = None,
    recipe_file: str | None = None,
    home: str | None = None,
) -> Any:
    """Plays one iteration of a campaign: the model answers, a copy learns to prefer the human answers, both are compared.

    Args:
        recipe: The recipe.
        iteration: Which one, from 0; by default the first that is not done. Earlier ones are looked up, or made where missing.
        overrides: Recipe keys to change, e.g. "training.beta=0.2".
        recipe_file: Path of a recipe file on the worker's machine, which is taken instead of the recipe.
        home: Where artifacts live; by default SPINFLOW_HOME, or ~/.spinflow.

    Returns the best model's folder, or a state "NothingToDo" when the campaign has all its iterations.
    """
    with session(recipe_file or recipe, overrides, home) as run:
        last, reason = (iteration, "") if iteration is not None else next_iteration(run.ledger.turns(), run.recipe)
        if last is None:
            return Completed(name="NothingToDo", message=reason)
        if last >= len(run.recipe.iterations):
            raise BadInput(
                f"campaign {run.recipe.name} has iterations 0 to {len(run.recipe.iterations) - 1}, not {last}",
                remedy="add an entry to `iterations`",
            )
        label_run(run.recipe.name, last)
        campaign = Campaign(run)
        for _ in range(last + 1):
            campaign = campaign.next()
        run.show(last)
        return campaign.best
