"""What a run holds: the store, the campaign's lock, the engine pool, and a clean end for all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.futures import wait
from prefect.logging import get_run_logger

from flows.watch import label_run, watched
from spin_core.generation.pool import EnginePool
from spin_core.generation.stage import plan
from spin_core.recipe import Recipe, load_recipe, with_overrides
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput, SpinflowError
from spin_core.runtime.progress import Progress, emit
from spin_core.store import Ref, Store
from tasks.generate import generate

DEFAULT_HOME = "~/.spinflow"
SHARDS_IN_FLIGHT = 128  # threads that wait for an engine or its answers; the pool bounds what each engine gets


def do(stage: Any, *arguments: Any) -> Ref:
    """Runs a stage's task in this thread, where a SIGTERM interrupts it, and returns its artifact.

    A task that returns a state ("Cached") hands back the state from a plain call, so the result is asked of it.
    """
    ref: Ref = stage(*arguments, return_state=True).result()
    return ref


@dataclass(frozen=True)
class Session:
    """One run of a flow over one home."""

    store: Store
    recipe: Recipe
    pool: EnginePool

    def sample(self, model: Ref, prompts: Ref, split: str, label: str) -> list[Ref]:
        """Samples every shard of a split under `model`. All shards finish before a failed one is raised."""
        plans = plan(self.store, self.recipe, model, prompts, split, label)
        futures = [generate.submit(self.store, self.recipe, shard, self.pool, label) for shard in plans]
        wait(futures)
        states = [future.state for future in futures]
        failed = [shard.index for shard, state in zip(plans, states, strict=True) if not state.is_completed()]
        if failed:
            reason = states[failed[0]].result(raise_on_failure=False)
            if len(failed) == len(plans) and isinstance(reason, SpinflowError):
                raise reason
            kind = BadInput if isinstance(reason, BadInput) else SpinflowError  # the exit status tells them apart
            raise kind(
                f"{label}: {split} shards {', '.join(map(str, failed))} of {len(plans)} failed: {reason}",
                remedy="run again, only those are redone",
            )
        return [future.result() for future in futures]


@contextmanager
def session(recipe: Recipe | str, overrides: list[str] | None, home: str | None) -> Iterator[Session]:
    """Opens store, log folder, campaign lock and pool; ends every child on the way out.

    `recipe` may be the path of a recipe file. A SIGTERM raises Prefect's TerminationSignal in the flow's main thread,
    so a cancelled run leaves through the same door.
    """
    recipe = with_overrides(recipe, overrides) if isinstance(recipe, Recipe) else load_recipe(Path(recipe), overrides)
    store = Store(Path(home or os.environ.get("SPINFLOW_HOME") or DEFAULT_HOME))
    label_run(recipe.name)
    log = get_run_logger()

    def waiting(done: bool) -> None:
        emit(Progress("waiting for another run of this campaign", int(done), 1))
        says = "has ended; this one goes on" if done else "is at work; this one waits for it"
        log.warning("Another run of campaign %s %s", recipe.name, says)

    with watched(store, recipe.name), store.campaign_lock(recipe.name, waiting):
        pool = EnginePool(store, recipe)
        try:
            yield Session(store, recipe, pool)
        finally:
            pool.stop()  # else the runner, which waits for queued shards, would start an engine for them
            process.end_all()
