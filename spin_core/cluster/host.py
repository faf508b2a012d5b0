"""What runs on a node: one actor with the GPUs that Ray gave it, which starts children there, or an engine.

Everything that takes long is streamed: a method yields lists of items, the last of which is `Done` or `Failed`. Errors travel as
data, so that they arrive as what they were.
"""

from __future__ import annotations

import os
import queue
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spin_core.cluster.disk import Disk, RunHome
from spin_core.cluster.network import interface
from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Engine, Prompt, Sampler
from spin_core.runtime import devices, leftovers, output, process, progress
from spin_core.runtime.errors import ChildCrash, SpinflowError
from spin_core.runtime.machine import Command, Place
from spin_core.store import Ref

_LINES_S = 0.5  # between two messages of a stream; its end waits for none
_ANSWERS_S = 2.0  # the same of answers: a thousand shards in flight are five hundred messages/s to one process
Emit = Callable[[Any], None]
MakeEngine = Callable[[Sampler, Path, int, int], Engine]  # its log, which it is of how many


@dataclass(frozen=True)
class Where:
    """A host's place, for people and for those that must be beside it."""

    node: str  # Ray's id
    name: str
    gpus: tuple[str, ...]
    version: str = ""  # of spinflow there

    def __str__(self) -> str:
        return f"{self.name}, GPU {', '.join(self.gpus)}" if self.gpus else self.name


@dataclass(frozen=True)
class Done:
    """The end of a stream, with what it was for."""

    value: Any = None


@dataclass(frozen=True)
class Failed:
    """The end of a stream by an error, see `output.told`."""

    told: str
    status: int


class _ChildFailed(Exception):
    """Its status says why, and what it made is not sent."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@cache
def here() -> str:
    """The version of spinflow that this process runs."""
    return version("spinflow")


class Host:
    """One actor; nothing that it started outlives it, however it ends."""

    def __init__(self) -> None:
        leftovers.guard()
        devices.lend()
        os.environ.pop("OMP_NUM_THREADS", None)  # Ray sets it by the CPUs that an actor reserves, and ours reserves none
        process.allow_open_files()
        # a child dies with the thread that started it, so an engine's lives as long as this
        self._starter = ThreadPoolExecutor(1, "engine-starter")
        self._engine: Engine | None = None
        self._disk: Disk | None = None

    def where(self) -> Where:
        """Where it was placed."""
        import ray

        found = devices.visible()
        return Where(ray.get_runtime_context().get_node_id(), socket.gethostname(), tuple(device.name for device in found), here())

    def meeting_point(self) -> tuple[str, int]:
        """An address of this node and a port that is free."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return str(ray.util.get_node_ip_address()), int(probe.getsockname()[1])

    def precision(self) -> str:
        """What `auto` is on this node's GPUs."""
        return devices.precision("auto")

    def run(
        self, module: str, job: Mapping[str, Any], env: Mapping[str, str], command: Command, place: Place, home: RunHome | None = None
    ) -> Iterator[list[Any]]:
        """Runs `python [command] -m module` on a job: its lines, then its status. With a `home`, on a disk of this node's own, and what
        it made and sent comes, too."""

        def work(emit: Emit) -> int:
            if home is None:
                return run_child(emit, job)
            with self._disk_of(home).job(job, place.rank if place.gpus else None, emit) as here:
                status = run_child(emit, here)
                if status:
                    raise _ChildFailed(status)
            return status

        def run_child(emit: Emit, job: Mapping[str, Any]) -> int:
            words = command(place)
            env_of_child = devices.environment(devices.visible()) | (interface() if place.count > 1 else {}) | dict(env)
            with process.job_file(job) as file:
                child = process.spawn([sys.executable, *words, "-m", module, file], Path(os.devnull), env_of_child, pipe=True)
                assert child.stdout is not None
                for line in child.stdout:
                    emit(line)
                status = child.wait()
                process.forget(child)
            return status

        yield from _streamed(work)

    def _disk_of(self, home: RunHome) -> Disk:
        self._disk = self._disk or Disk(home)
        return self._disk

    def start(
        self, make: MakeEngine, sampler: Sampler, log: Path, part: int, parts: int, home: RunHome | None = None
    ) -> Iterator[list[Any]]:
        """Starts the engine: its progress events, then its window and address."""

        def work(emit: Emit) -> tuple[int, Any]:
            end = progress.listen(emit)
            try:
                mine = self._disk_of(home).here(sampler, log) if home else (sampler, log)
                self._engine = engine = self._starter.submit(make, *mine, part, parts).result()
            finally:
                end()
            return engine.window, engine.address

        yield from _streamed(work)

    def bring(self, model: Ref, home: RunHome) -> Iterator[list[Any]]:
        """Has a model on this node's disk: progress events, then its folder."""

        def work(emit: Emit) -> str:
            end = progress.listen(emit)
            try:
                return str(self._disk_of(home).find(model).path)
            finally:
                end()

        yield from _streamed(work)

    def sample(self, prompts: Sequence[Prompt], ends: Ends) -> Iterator[list[Any]]:
        """See `Engine.sample`: a pair of what `on_answer` is told, in which all answers since the last are one, then the answers."""

        def work(emit: Emit) -> Any:
            assert self._engine is not None
            return self._engine.sample(prompts, ends, lambda done, new: emit((done, new)))

        for batch in _streamed(work, _ANSWERS_S):
            told = [item for item in batch if not isinstance(item, Done | Failed)]
            so_far = [(told[-1][0], sum(new for _, new in told))] if told else []
            yield so_far + batch[len(told) :]

    def alive(self) -> bool:
        """Whether the engine can take work."""
        return self._engine is not None and self._engine.alive()

    def close(self) -> None:
        """Ends the engine and every child."""
        if self._engine is not None:
            self._engine.close()
        process.end_all()
        if self._disk:
            self._disk.close()


def _streamed(work: Callable[[Emit], Any], every_s: float = _LINES_S) -> Iterator[list[Any]]:
    """What `work` emits, in a list every so many seconds; it runs in a thread of its own and its end is the last item."""
    items: queue.SimpleQueue[Any] = queue.SimpleQueue()
    ended = threading.Event()

    def act() -> None:
        try:
            items.put(Done(work(items.put)))
        except _ChildFailed as failed:
            items.put(Done(failed.status))
        except SpinflowError as error:
            items.put(Failed(output.told(error), error.exit_code if isinstance(error, ChildCrash) else -1))
        except BaseException as error:  # a bug: in the run's log it should have its name
            items.put(Failed(output.told(SpinflowError(f"{type(error).__name__} on {socket.gethostname()}: {error}")), -1))
        finally:
            ended.set()

    threading.Thread(target=act, daemon=True).start()
    while True:
        ended.wait(every_s)  # and not for each item: a thousand a second would wake this thread as often
        batch = [items.get()]
        while not items.empty():
            batch.append(items.get())
        yield batch
        if isinstance(batch[-1], Done | Failed):
            return
