"""One turn of self-play: prompts → shards → pairs → scores → model → verdict."""

from __future__ import annotations

from dataclasses import dataclass

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.session import SHARDS_IN_FLIGHT, Session, do, session
from spin_core.errors import BadInput
from spin_core.recipe import Recipe
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
    answers = run.sample(player, prompts, "test", label)
    verdict = do(evaluate, store, recipe, iteration, opponent, player, pairs, reference, test, answers)

    names = {"prompts": prompts, "opponent": opponent, "pairs": pairs, "reference": reference, "model": player, "evaluation": verdict}
    names |= {
        f"{split}-shard-{i:03d}": ref for split, refs in (("train", train), ("test", test), ("new", answers)) for i, ref in enumerate(refs)
    }
    if store.link(recipe.name, iteration, names):
        store.unlink_after(recipe.name, iteration)
    report(store, recipe, iteration)
    return Turn(player, pairs, verdict)


@flow(name="spin-iteration", task_runner=ThreadPoolTaskRunner(max_workers=SHARDS_IN_FLIGHT), persist_result=False, log_prints=False)
def spin_iteration(recipe: Recipe, iteration: int | None = None, home: str | None = None) -> str:
    """Plays one iteration, by default the first that is not done. Returns the new model's folder.

    Earlier iterations are looked up through their artifacts; where one is missing it is made first.
    """
    with session(recipe, home) as run:
        last = iteration if iteration is not None else next_iteration(run)
        if last >= len(recipe.iterations):
            raise BadInput(
                f"campaign {recipe.name} has iterations 0 to {len(recipe.iterations) - 1}, not {last}",
                remedy="add an entry to `iterations`",
            )
        turn: Turn | None = None
        for number in range(last + 1):
            turn = play(run, number, turn)
        assert turn is not None
        return str(turn.model.path)


def next_iteration(run: Session) -> int:
    """The first iteration without an evaluation; the last one where all are done."""
    folder = run.store.home / "campaigns" / run.recipe.name
    last = len(run.recipe.iterations) - 1
    return next((t for t in range(last) if not (folder / f"iter-{t}" / "evaluation").exists()), last)


if __name__ == "__main__":
    from flows.main import main

    main(spin_iteration)
