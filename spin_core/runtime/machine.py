"""Where children run: this machine, or the nodes of a cluster (`spin_core.cluster`). Stages see only the protocol.

A stage says what its child needs: no device, one device each for several children side by side, or all devices for one that is
spread over them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from spin_core.runtime import devices, process
from spin_core.runtime.errors import ChildCrash
from spin_core.store import Store


@dataclass(frozen=True)
class Child:
    """A child process: `python -m module` on a job."""

    module: str
    job: Mapping[str, Any]
    log: str  # name of its file in the store's log folder, without .log
    name: str  # of its progress
    part: int = 0  # which it is of several that share the name
    env: Mapping[str, str] = field(default_factory=dict, repr=False)  # what must not stand in the job's file
    memory: int = 0  # bytes of RAM that it takes at least, where its stage knows them; a cluster's scheduler is asked for them
    waited: Callable[[float], Any] = lambda seconds: None  # told how long it waited for its devices


@dataclass(frozen=True)
class Place:
    """A machine's place among those that train together; rank 0 is the one that the others connect to."""

    gpus: int  # of each machine
    count: int = 1
    rank: int = 0
    address: str = ""
    port: int = 0  # 0: one that is free


Command = Callable[[Place], list[str]]  # the arguments between `python` and `-m module`


class Machine(Protocol):
    """Runs children to their end. All raise what `process.run_job` raises; a lost node is a ChildCrash."""

    @property
    def device_count(self) -> int:
        """How many children with a device each run at once now; 1 where there is none."""
        ...

    @property
    def elsewhere(self) -> bool:
        """Whether children with a device have disks of their own: then their work folders are not this machine's."""
        ...

    def run(self, child: Child, node: str = "") -> None:
        """A child without a device, on this machine, or beside the engine of that `node`."""
        ...

    def spread(self, child: Child, most: int) -> None:
        """At most so many children side by side, each with a device of its own, or one on the CPU where there is none.

        Each finds its number and their count in its job, as `part` and `parts`. Raises what the first of them raised, once all
        have ended: the others go on and can take over what it left.
        """
        ...

    def together(self, child: Child, command: Command) -> None:
        """One child on all devices. On a cluster one a node, all on the same job, each started with the `command` of its place."""
        ...


class ThisMachine:
    """Children of this process, with devices that are locked against other runs."""

    elsewhere = False

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def device_count(self) -> int:
        """See `Machine`."""
        return max(1, len(devices.visible()))

    def run(self, child: Child, node: str = "") -> None:
        """See `Machine`."""
        self._run(child, ())

    def spread(self, child: Child, most: int) -> None:
        """See `Machine`."""
        groups = devices.groups(devices.visible(), 1)[:most]
        side_by_side([partial(self._run, *part) for part in zip(parts_of(child, len(groups)), groups, strict=True)])

    def together(self, child: Child, command: Command) -> None:
        """See `Machine`."""
        group = devices.visible()
        self._run(child, group, command(Place(len(group))))

    def _run(self, child: Child, group: Sequence[devices.Device], command: Sequence[str] = ()) -> None:
        log = self._store.log_path(child.log)
        with self._store.brought(child.job):
            asked = time.monotonic()
            with devices.hold(group, purpose=child.name) as held:
                if group:
                    child.waited(time.monotonic() - asked)
                env = devices.environment(group) | dict(child.env)
                process.run_job(child.module, child.job, log, launcher=command, name=child.name, part=child.part, env=env, fds=held.fds)


def parts_of(child: Child, count: int, at_once: int = 0) -> list[Child]:
    """So many of it, each told which it is and how many work at once (all of them), with a log of its own."""
    jobs = [{**child.job, "part": part, "parts": at_once or count} for part in range(count)]
    return [replace(child, job=job, log=child.log + (f"-{part}" if part else ""), part=part) for part, job in enumerate(jobs)]


def side_by_side(calls: Sequence[Callable[[], None]]) -> None:
    """Calls all of them at once. Once all have ended, raises what the first that failed has raised; a crash only where all crashed."""
    if len(calls) == 1:
        calls[0]()
        return
    failures: list[BaseException] = []

    def call(one: Callable[[], None]) -> None:
        try:
            one()
        except BaseException as error:
            failures.append(error)

    # a child dies with the thread that started it; daemons, so that a run that is ended does not wait for them
    threads = [threading.Thread(target=call, args=(one,), daemon=True) for one in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise telling(failures)


def telling(failures: Sequence[BaseException]) -> BaseException:
    """Of errors in the order in which they came, the one that says most: the first that is more than a crash, or the first."""
    return next((failure for failure in failures if not isinstance(failure, ChildCrash)), failures[0])
