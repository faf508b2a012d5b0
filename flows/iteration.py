"""One turn of self-play: prompts → shards → pairs → scores → model → verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from prefect import flow, tags
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.session import SHARDS_IN_FLIGHT, Session, session
from flows.watch import label_run
from spin_core.campaign.rules import next_iteration
from spin_core.campaign.workspace import link
from spin_core.recipe import Recipe
from spin_core.runtime.errors import BadInput
from spin_core.store import Ref
from tasks.report import report


@dataclass(frozen=True)
class Played:
    """What an iteration made, and the next one starts from."""

    model: Ref
    pairs: tuple[Ref, ...]  # its own and those of all iterations before it, in order


def play(run: Session, iteration: int, before: Played | None) -> Played:
    """θ_t answers, θ_{t+1} learns to tell its answers from the human ones. Whatever is done already is found, not redone."""
    with tags(f"campaign:{run.recipe.name}", f"iteration:{iteration}"):
        return _play(run, iteration, before)


def _play(run: Session, iteration: int, before: Played | None) -> Played:
    turn = run.turn(iteration)
    prompts, start = run.do(turn.prompts()), run.do(turn.start())  # bad data is found sooner than a model is loaded
    encoded = run.do(turn.encoded(start, prompts))
    opponent, earlier = (before.model, before.pairs) if before else (start, ())
    origin = turn.origin(start, opponent)

    test = run.sample(turn.shards(opponent, encoded, "test"))
    train = run.sample(turn.shards(opponent, encoded, "train"))
    run.free_devices()
    pairs = run.do(turn.pairs(prompts, encoded, train, test, earlier))
    reference = run.do(turn.reference(origin, opponent, pairs))
    held_out = reference if origin == opponent else run.do(turn.held_out(opponent, pairs))
    trained = run.do(turn.player(origin, pairs, reference))
    player = run.do(turn.choice(opponent, trained, encoded)) if turn.chooses else trained
    scored = run.do(turn.held_out(player, pairs))
    new = run.sample(turn.new_shards(player, encoded))  # these engines stay up for the next turn
    verdict = run.do(turn.verdict(pairs, reference, held_out, scored, test, new))

    made = {"prompts": prompts, "start": start, "encoded": encoded, "opponent": opponent, "pairs": pairs, "reference": reference}
    made |= {"model": player, "scored": scored, "evaluation": verdict}
    made |= {name: ref for name, ref in (("held_out", held_out), ("trained", trained)) if ref not in (reference, player)}
    run.ledger.note(iteration, run.recipe, {**made, "test_shards": test, "train_shards": train, "new_shards": new})
    link(run.store, run.recipe.name)
    return Played(player, (*earlier, pairs))


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

    Returns the new model's folder, or a state "NothingToDo" when the campaign has all its iterations.
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
        played: Played | None = None
        for number in range(last + 1):
            played = play(run, number, played)
        assert played is not None
        report(run.store, run.recipe, last)
        return str(played.model.path)
