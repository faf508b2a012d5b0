"""Iterations of self-play until the recipe's last one, or until held-out data says that no more is to be won."""

from __future__ import annotations

import json

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.iteration import Turn, play
from flows.session import SHARDS_IN_FLIGHT, session
from spin_core.recipe import Recipe, StopSettings
from spin_core.store import Ref


@flow(name="spin-campaign", task_runner=ThreadPoolTaskRunner(max_workers=SHARDS_IN_FLIGHT), persist_result=False, log_prints=False)
def spin_campaign(recipe: Recipe, home: str | None = None) -> str:
    """Plays every iteration. Returns the newest model's folder."""
    with session(recipe, home) as run:
        turn: Turn | None = None
        for iteration in range(len(recipe.iterations)):
            turn = play(run, iteration, turn)
            if no_more_to_win(recipe.stop, turn.evaluation):
                break
        assert turn is not None  # a recipe has at least one iteration
        return str(turn.model.path)


def no_more_to_win(stop: StopSettings, evaluation: Ref) -> bool:
    """Whether held-out check accuracy rose by less than the stop rule asks for."""
    metrics = json.loads((evaluation.path / "metrics.json").read_text())
    before, after = (metrics[who]["check_accuracy"] for who in ("before", "after"))
    if stop.min_accuracy_gain is None or before is None or after is None:
        return False
    return bool(after - before < stop.min_accuracy_gain)


if __name__ == "__main__":
    from flows.main import main

    main(spin_campaign)
