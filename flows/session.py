"""What a run holds: the store, the campaign's lock and ledger, the launcher with its engines, and a clean end for all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prefect.futures import wait
from prefect.logging import get_run_logger

from flows.watch import label_run, watched
from spin_core.campaign.ledger import Ledger
from spin_core.campaign.turn import TurnStages
from spin_core.campaign.workspace import campaign_lock
from spin_core.cluster.join import address, joined
from spin_core.generation.pool import EnginePool
from spin_core.generation.stage import Shard
from spin_core.recipe import Recipe, load_recipe, with_overrides
from spin_core.runtime import devices, environment, leftovers, process, surroundings
from spin_core.runtime.errors import BadInput, SpinflowError
from spin_core.runtime.launcher import Launcher, Stage
from spin_core.runtime.progress import Progress, emit, tell
from spin_core.store import Ref, Store
from tasks.build import build
from tasks.report import report

DEFAULT_HOME = "~/.spinflow"
SHARDS_IN_FLIGHT = 256  # threads that wait for an engine or its answers; the pool bounds what each engine gets


@dataclass(frozen=True)
class Session:
    """One run of a flow over one campaign."""

    store: Store
    recipe: Recipe  # as it was written, for the ledger and the tables
    pinned: Recipe  # with the commits that the campaign began with
    ledger: Ledger
    on: Launcher

    def turn(self, iteration: int) -> TurnStages:
        """The stages of one iteration."""
        trained = [turn.trained for turn in self.ledger.turns()[:iteration]]
        steps = sum(ref.facts["steps"] for ref in trained if ref.done)
        return TurnStages.of(self.pinned, iteration, self.store.home, steps)

    def do(self, name: str, stage: Stage) -> Ref:
        """Runs a stage's task in this thread, where a SIGTERM interrupts it, and returns its artifact.

        The store says where that is: a slow server can hand back a completed state without its result.
        """
        state = build(stage, self.on, return_state=True)
        if not state.is_completed():
            state.result()
        return self.store.ref(stage.spec())

    def sample(self, name: str, shards: Sequence[Shard]) -> tuple[Ref, ...]:
        """Samples the shards of a split side by side. All of them finish before a failed one is raised."""
        futures = [build.submit(shard, self.on) for shard in shards]
        wait(futures)
        states = [future.state for future in futures]
        failed = [shard.index for shard, state in zip(shards, states, strict=True) if not state.is_completed()]
        if failed:
            reason = states[failed[0]].result(raise_on_failure=False)
            if len(failed) == len(shards) and isinstance(reason, SpinflowError):
                raise reason
            kind = BadInput if isinstance(reason, BadInput) else SpinflowError  # the exit status tells them apart
            raise kind(
                f"{shards[0].turn}: {shards[0].split} shards {', '.join(map(str, failed))} of {len(shards)} failed: {reason}",
                remedy="run again, only those are redone",
            )
        return tuple(self.store.ref(shard.spec()) for shard in shards)

    def show(self, iteration: int) -> None:
        """The campaign's page and what the UI and the trackers are shown; a mistake there is told and costs nobody their model."""
        state = report(self.store, self.recipe, iteration, return_state=True)
        if not state.is_completed():
            tell(f"iter-{iteration} · report", f"it could not be made: {state.message}")

    def free_devices(self) -> None:
        """Ends the engines: training and scoring need what they hold."""
        self.on.engines.close()


@contextmanager
def session(recipe: Recipe | str, overrides: list[str] | None, home: str | None) -> Iterator[Session]:
    """Opens store, log folder, campaign lock, ledger and engine pool; ends every child on the way out.

    `recipe` may be the path of a recipe file. A SIGTERM raises Prefect's TerminationSignal in the flow's main thread,
    so a cancelled run leaves through the same door.
    """
    environment.keep_loopback_direct()
    leftovers.guard()  # in a worker there is no command line that did
    recipe = with_overrides(recipe, overrides) if isinstance(recipe, Recipe) else load_recipe(Path(recipe), overrides)
    store = Store(home or os.environ.get("SPINFLOW_HOME") or DEFAULT_HOME)
    surroundings.require_writable(store.home)
    label_run(recipe.name)
    devices.introduce(f"campaign {recipe.name}")
    log = get_run_logger()

    def waiting(holder: str) -> None:
        emit(Progress("waiting for another run of this campaign", int(not holder), 1, "", holder))
        says = f"is at work in {holder}; this one waits for it" if holder else "has ended; this one goes on"
        log.warning("Another run of campaign %s %s", recipe.name, says)

    with (
        watched(store, recipe.name),
        campaign_lock(store, recipe.name, waiting),
        joined(store, address(recipe.cluster)) as cluster,
    ):
        pool = EnginePool(store, cluster.starts if cluster else None)
        try:
            ledger = Ledger(store, recipe.name)
            pinned = ledger.pinned(recipe, precision=cluster.precision if cluster else None)
            yield Session(store, recipe, pinned, ledger, Launcher(store, recipe.name, pool, cluster))
        finally:
            pool.stop()  # else the runner, which waits for queued shards, would start an engine for them
            process.end_all()
