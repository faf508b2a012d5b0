"""One turn of self-play: prompts → shards → pairs → scores → model → verdict."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from prefect import flow, tags
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner

from flows.session import Session, do, session
from flows.watch import label_run
from spin_core.errors import BadInput
from spin_core.recipe import Recipe, StopSettings
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
    answers = run.sample(player, prompts, "test", label)
    verdict = do(evaluate, store, recipe, iteration, opponent, player, pairs, reference, test, answers)

    names = {"prompts": prompts, "opponent": opponent, "pairs": pairs, "reference": reference, "model": player, "evaluation": verdict}
    names |= {
        f"{split}-shard-{i:03d}": ref for split, refs in (("train", train), ("test", test), ("new", answers)) for i, ref in enumerate(refs)
    }
    if store.link(recipe.name, iteration, names):
        store.unlink_after(recipe.name, iteration)
    played = store.campaign_folder(recipe.name) / f"played-{iteration}.json"
    played.write_text(json.dumps(settings_of(recipe, iteration)))
    return Turn(player, pairs, verdict)


def done_before(run: Session) -> list[Ref]:
    """The evaluations of the leading iterations that were played with this recipe."""
    folder = run.store.campaign_folder(run.recipe.name)
    found = []
    for iteration in range(len(run.recipe.iterations)):
        verdict = folder / f"iter-{iteration}" / "evaluation"
        played = folder / f"played-{iteration}.json"
        if not verdict.exists() or not played.exists() or json.loads(played.read_text()) != settings_of(run.recipe, iteration):
            break
        found.append(Ref("evaluation", verdict.resolve().name, verdict.resolve()))
    return found


def settings_of(recipe: Recipe, iteration: int) -> dict[str, Any]:
    """What the recipe says about one iteration and those before it: more of them may be added behind."""
    return recipe.model_dump(mode="json", exclude={"stop"}) | {"iterations": recipe.model_dump(mode="json")["iterations"][: iteration + 1]}


def no_more_to_win(stop: StopSettings, evaluation: Ref) -> bool:
    """Whether held-out check accuracy rose by less than the stop rule asks for."""
    metrics = json.loads((evaluation.path / "metrics.json").read_text())
    before, after = (metrics[who]["check_accuracy"] for who in ("before", "after"))
    if stop.min_accuracy_gain is None or before is None or after is None:
        return False
    return bool(after - before < stop.min_accuracy_gain)


def next_iteration(run: Session) -> tuple[int | None, str]:
    """The first iteration that is not done, or None and the reason why there is nothing to do."""
    done, recipe = done_before(run), run.recipe
    if len(done) == len(recipe.iterations):
        return None, f"campaign {recipe.name} has all its {len(done)} iterations; add an entry to `iterations` to go on"
    if done and no_more_to_win(recipe.stop, done[-1]):
        return None, f"campaign {recipe.name} was stopped after iteration {len(done) - 1} by its stop rule; change `stop` to go on"
    return len(done), ""


@flow(name="spin-iteration", task_runner=ThreadPoolTaskRunner(max_workers=8), persist_result=False, log_prints=False)
def spin_iteration(recipe: Recipe | str, iteration: int | None = None, overrides: list[str] | None = None, home: str | None = None) -> Any:
    """Plays one iteration of a campaign: the model answers, a copy learns to prefer the human answers, both are compared.

    Args:
        recipe: A recipe, or the path of a recipe file on the worker's machine.
        iteration: Which one, from 0; by default the first that is not done. Earlier ones are looked up, or made where missing.
        overrides: Recipe keys to change, e.g. "training.beta=0.2".
        home: Where artifacts live; by default SPINFLOW_HOME, or ~/.spinflow.

    Returns the new model's folder, or a state "NothingToDo" when the campaign has all its iterations.
    """
    with session(recipe, overrides, home) as run:
        last, reason = (iteration, "") if iteration is not None else next_iteration(run)
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
