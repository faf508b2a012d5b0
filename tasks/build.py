"""Task: one stage, built where its artifact does not exist yet."""

from __future__ import annotations

import time
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from spin_core.runtime.errors import ChildCrash, Unreachable
from spin_core.runtime.launcher import Launcher, Stage


def worth_a_retry(_task: Any, _run: Any, state: Any) -> bool:
    """Crashes of children and a store that does not answer are tried again; bad input, cancellation and our own bugs are not.

    A corrupt artifact is set aside when it is found, and a retry of the same task cannot bring it back: the next run does.
    """
    try:
        state.result()
    except (ChildCrash, Unreachable):
        return True
    except BaseException:
        return False
    return False


@task(
    task_run_name="{stage.label}",
    cache_policy=NO_CACHE,  # the artifact store is the only truth
    persist_result=False,
    retries=3,
    retry_delay_seconds=[1, 5, 20],
    retry_jitter_factor=1.0,  # a shard that kills its engine should not meet the same shards at every retry
    retry_condition_fn=worth_a_retry,
)
def build(stage: Stage, on: Launcher) -> Any:
    """Runs the stage; where its artifact was there already, the task's state says "Cached" in the UI."""
    started = time.time()
    ref = on.build(stage)
    cached = not ref.here or ref.made < started
    return Completed(name="Cached", data=ref) if cached else ref
