"""One turn of self-play: prompts → shards → pairs → scores → model → verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from prefect import flow, tags
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.next import next_iteration, note_played
from flows.session import SHARDS_IN_FLIGHT, Session, do, session
from flows.watch import label_run
from spin_core.recipe import Recipe
from spin_core.runtime.errors import BadInput
from spin_core.store import Ref
from tasks.evaluate import evaluate
from tasks.finetune import finetune
from tasks.gather import gather
from tasks.import_model import import_model
from tasks.reformat import reformat
from tasks.report import report
from tasks.score import score


@dataclass(frozen=True)
class Turn:
    """What an iteration made, and the next one starts from."""

    model: Ref
    pairs: Ref
    evaluation: Ref


def play(run: Session, iteration: int, before: Turn | None) -> Turn:
    """θ_t answers, θ_{t+1} learns to tell its answers from the human ones. Whatever is done already is found, not redone."""
    with tags(f"campaign:{run.recipe.name}", f"iteration:{iteration}"):
        return _play(run, iteration, before)


def _play(run: Session, iteration: int, before: Turn | None) -> Turn:
    store, recipe = run.store, run.recipe
    prompts = do(reformat, store, recipe)
    opponent = before.model if before else do(import_model, store, recipe)
    label = f"iter-{iteration}"

    test = run.sample(opponent, prompts, "test", label)
    train = run.sample(opponent, prompts, "train", label)
    run.pool.close()  # training needs the memory
    pairs = do(gather, store, recipe, iteration, opponent, prompts, train, test, before.pairs if before else None)
    reference = do(score, store, recipe, iteration, opponent, pairs)
    player = do(finetune, store, recipe, iteration, opponent, pairs, reference)
    scored = do(score, store, recipe, iteration, player, pairs, ("test",))
    answers = run.sample(player, prompts, "test", label)  # these engines stay up for the next turn
    verdict = do(evaluate, store, recipe, iteration, pairs, reference, scored, test, answers)

    names = {"prompts": prompts, "opponent": opponent, "pairs": pairs, "reference": reference, "model": player, "evaluation": verdict}
    names |= {
        f"{split}-shard-{i:03d}": ref for split, refs in (("train", train), ("test", test), ("new", answers)) for i, ref in enumerate(refs)
    }
    if store.link(recipe.name, iteration, names):
        store.unlink_after(recipe.name, iteration)
    note_played(store, recipe, iteration)
    return Turn(player, pairs, verdict)


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
        last, reason = (iteration, "") if iteration is not None else next_iteration(run.store, run.recipe)
        if last is None:
            return Completed(name="NothingToDo", message=reason)
        if last >= len(run.recipe.iterations):
            raise BadInput(
                f"campaign {run.recipe.name} has iterations 0 to {len(run.recipe.iterations) - 1}, not {last}",
                remedy="add an entry to `iterations`",
            )
        label_run(run.recipe.name, last)
        turn: Turn | None = None
        for number in range(last + 1):
            turn = play(run, number, turn)
        assert turn is not None
        report(run.store, run.recipe, last)
        return str(turn.model.path)


if __name__ == "__main__":
    from flows.main import main

    main(spin_iteration)
