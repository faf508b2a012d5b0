"""An actor on a node as the run sees it: placed when the cluster has room, followed to the end of what it does, ended with it."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from spin_core.cluster.host import Done, Failed, Where, here
from spin_core.runtime import output
from spin_core.runtime.errors import Cancelled, ChildCrash, SpinflowError
from spin_core.runtime.progress import Progress, emit

_QUIET_S = 3.0  # so long a wait for a place is nothing to tell
_LOOK_S = 0.5  # a signal is heard between two looks
_SHARD_LOOK_S = 10.0  # the same where no signal can come, in threads that are many
_CONTROL = "control"  # methods that must not wait behind shards
_STREAMS = 64  # shards that an engine answers at once
_CLOSE_S, _ANSWER_S = 20.0, 30.0
_FOUND_OUT_S = 60.0
_REMEDY = "run again to continue"
_SAME = "have the same spinflow and Python on all nodes, then run again"


class Wait:
    """A wait for a place, told to people once it is longer than a moment."""

    def __init__(self, name: str, why: Callable[[], str], matters: Callable[[], bool] = lambda: True) -> None:
        self._name, self._why, self._matters = f"{name}: waiting for the cluster", why, matters
        self._started, self._told = time.monotonic(), False

    def tell(self) -> None:
        """It goes on."""
        seconds = time.monotonic() - self._started
        if seconds > _QUIET_S and self._matters():
            self._told = True
            emit(Progress(self._name, 0, 1, "", f"{self._why()}, {seconds:.0f} s"))

    def over(self) -> None:
        """It has ended."""
        if self._told:
            emit(Progress(self._name, 1, 1))


class Lease:
    """A host that was asked for, with so many GPUs and bytes of memory; `place` waits until it has one.

    With `group` it is for the GPUs of a placement group of its own, which goes with it, and lies where the first of them is.
    """

    def __init__(self, host: type, *, gpus: int, memory: int = 0, strategy: Any = None, group: PlacementGroup | None = None) -> None:
        options: dict[str, Any] = {"num_gpus": gpus, "num_cpus": 0, "max_restarts": 0, "max_task_retries": 0}
        options |= {"max_concurrency": _STREAMS}
        if memory:
            options["memory"] = memory
        if group is not None:
            strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
        if strategy is not None:
            options["scheduling_strategy"] = strategy
        self.gpus, self.ended, self.group = gpus, False, group
        self.where = Where("", "a node", ())
        self._kind = ray.remote(concurrency_groups={_CONTROL: 2})(host).options(**options)
        self._ask_for_place()

    def _ask_for_place(self) -> None:
        self._actor: Any = self._kind.remote()
        self._placed = self._call("where")

    def place(self, ended: Callable[[], bool], wait: Wait | None = None) -> None:
        """Waits for room, which `wait` tells of. Raises Cancelled once `ended()` says so."""
        lost = 0.0
        while True:
            if _ready(self._placed):
                try:
                    self.where = self._got(self._placed)
                    if self.where.version != here():
                        told = f"{self.where.name} has spinflow {self.where.version}, this run {here()}"
                        raise SpinflowError(told, remedy=_SAME)
                    if self.group is not None:
                        self.where = replace(self.where, name=f"{self.where.name} and others", gpus=())
                    break
                except ChildCrash:  # it was given to a node that is gone, which Ray finds out in about half a minute
                    lost = lost or time.monotonic()
                    if time.monotonic() - lost > _FOUND_OUT_S:
                        raise
                    time.sleep(_LOOK_S)
                    self._ask_for_place()
            if ended():
                raise Cancelled("the run was ended")
            if wait:
                wait.tell()
        if wait:
            wait.over()

    def ask(self, method: str, *args: Any, timeout_s: float = _ANSWER_S) -> Any:
        """What a method of the host answers. Raises ChildCrash where it does not."""
        answer = self._call(method, *args)
        deadline = time.monotonic() + timeout_s
        while not _ready(answer):
            if time.monotonic() > deadline:
                raise ChildCrash(f"{self.where} does not answer", exit_code=-1, remedy=_REMEDY)
        return self._got(answer)

    def follow(self, method: str, *args: Any, on: Callable[[Any], None]) -> Any:
        """Calls a method that streams, tells `on` each item, and returns its value or raises its error."""
        stream = self._call(method, *args, streaming=True)
        look_s = _LOOK_S if threading.current_thread() is threading.main_thread() else _SHARD_LOOK_S
        while True:
            if not _ready(stream, look_s):
                continue
            for item in self._got(next(stream)):
                if isinstance(item, Failed):
                    raise output.as_told(item.told, item.status)
                if isinstance(item, Done):
                    return item.value
                on(item)

    def end(self) -> None:
        """Ends what runs there, and gives the GPUs back; may be called twice."""
        if self.ended:
            return
        self.ended = True
        with suppress(ChildCrash):
            if self.where.node:
                self.ask("close", timeout_s=_CLOSE_S)
        with suppress(RayError):
            ray.kill(self._actor)  # its watcher ends what a host that does not answer has left
        if self.group is not None:
            with suppress(RayError):
                remove_placement_group(self.group)  # and everybody in it

    def _call(self, method: str, *args: Any, streaming: bool = False) -> Any:
        options = {"num_returns": "streaming"} if streaming else {"concurrency_group": _CONTROL}
        return getattr(self._actor, method).options(**options).remote(*args)

    def _got(self, answer: Any) -> Any:
        try:
            return ray.get(answer)
        except RayError as error:
            why = [line.strip()[:200] for line in str(error).splitlines() if line.strip()] or ["it does not say why"]
            if "creation task" in str(error) and re.match("(Import|ModuleNotFound|Attribute)Error", why[-1]):  # no node that is gone
                raise SpinflowError(f"the node at {_address(str(error))} cannot run spinflow ({why[-1]})", remedy=_SAME) from None
            raise ChildCrash(f"{self.where} was lost ({type(error).__name__}: {why[0]})", exit_code=-1, remedy=_REMEDY) from None


def _address(text: str) -> str:
    """Of the node that an error of Ray's tells of."""
    found = re.search(r"ip=([^,)]+)", text)
    return found[1] if found else "an address that Ray does not tell"


def _ready(answer: Any, within_s: float = _LOOK_S) -> bool:
    """Whether it has come, within so long. Raises ChildCrash where this run has left the cluster meanwhile."""
    try:
        return bool(ray.wait([answer], timeout=within_s)[0])
    except RayError:
        raise ChildCrash("the cluster was left", exit_code=-1, remedy=_REMEDY) from None
