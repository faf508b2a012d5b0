"""What a run holds: the store, the engine pool, and a clean end for both."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.futures import wait

from spin_core import process
from spin_core.errors import BadInput, Cancelled, SpinflowError
from spin_core.generation.pool import EnginePool
from spin_core.generation.shards import plan
from spin_core.recipe import Recipe
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
def session(recipe: Recipe, home: str | None) -> Iterator[Session]:
    """Opens the store and the pool; ends every child on the way out, also on SIGTERM."""
    previous: Any = None
    main = threading.current_thread() is threading.main_thread()
    if main:  # only the main thread may set a handler; Prefect's own runs end their process group by themselves
        previous = signal.signal(signal.SIGTERM, _cancelled)
    store = Store(Path(home or DEFAULT_HOME))
    pool = EnginePool(store, recipe)
    try:
        yield Session(store, recipe, pool)
    finally:
        pool.stop()  # else the runner, which waits for queued shards, would start an engine for them
        process.end_all()
        if main:
            signal.signal(signal.SIGTERM, previous)


def _cancelled(_signal: int, _frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not break off the clean end
    raise Cancelled("the run was cancelled", remedy="run again to continue")
