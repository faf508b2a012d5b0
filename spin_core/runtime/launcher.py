"""Builds stages: the store, the machine or cluster that their children run on, engines and resume folders."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Protocol

from spin_core.runtime.machine import Child, Command, Machine, ThisMachine
from spin_core.runtime.progress import Progress, emit, tell
from spin_core.store import Ref, Spec, Store


class Stage(Protocol):
    """One stage with its settings and parents: a small frozen dataclass."""

    @property
    def label(self) -> str:
        """What people call it, as "iter-0 · fine-tune"."""
        ...

    def spec(self) -> Spec:
        """What determines its artifact. Runs nothing and writes nothing."""
        ...

    def run(self, out: Path, on: Launcher) -> Mapping[str, Any] | None:
        """Writes the artifact's files into `out`; may return facts, or leave them in facts.json."""
        ...


class Launcher:
    """Runs stages, their children on `machine`: this one, unless another is given."""

    def __init__(self, store: Store, campaign: str = "", engines: Any = None, machine: Machine | None = None) -> None:
        self.store, self.campaign = store, campaign
        self._machine = machine or ThisMachine(store)
        self.engines = engines  # the pool that shards are leased from
        self._known: set[str] = set()  # models that this run made or verified
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._waits: list[float] = []  # seconds that children of one stage waited for their devices

    def build(self, stage: Stage) -> Ref:
        """The stage's artifact, made here where it does not exist yet. Another run's build of it is waited for.

        Raises what the stage raises, and Corrupt where a model that it needs is damaged on disk.
        """
        spec = stage.spec()

        def write(out: Path) -> Mapping[str, Any]:
            self._verify_models(spec.parents)
            on = copy(self)
            on._waits = []
            facts = dict(stage.run(out, on) or {})
            facts |= {"campaign": self.campaign} if self.campaign else {}
            return facts | ({"waited": round(max(on._waits), 3)} if on._waits else {})

        def waiting(holder: str) -> None:
            note = f"{holder} is building it" if holder else ""
            emit(Progress(f"{stage.label}: waiting", int(not holder), 1, "", note))

        ref = self.store.build(spec, write, waiting, self.campaign)
        with self._lock:
            self._known.add(ref.digest)
        self._tell(stage.label, ref)
        return ref

    def _verify_models(self, refs: Sequence[Ref]) -> None:
        with self._lock:
            new = [ref for ref in refs if ref.kind == "model" and ref.digest not in self._known]
            self.store.verify(*new)
            self._known.update(ref.digest for ref in new)

    def _tell(self, label: str, ref: Ref) -> None:
        """What a person should read of an artifact, once a run."""
        facts = ref.facts
        texts = [text for text in (facts.get("message"), *facts.get("warnings", ())) if text]
        with self._lock:
            if ref.digest in self._told:
                return
            self._told.add(ref.digest)
        for text in texts:
            tell(label, text)

    def job(
        self, module: str, job: Mapping[str, Any], log: str, name: str, *, env: Mapping[str, str] | None = None, node: str = ""
    ) -> None:
        """A child without a device, see `Machine.run`; `env` has what must not stand in the job's file."""
        self._machine.run(Child(module, job, log, name, env=env or {}, waited=self._waits.append), node)

    @property
    def device_count(self) -> int:
        """See `Machine.device_count`."""
        return self._machine.device_count

    def spread(self, module: str, job: Mapping[str, Any], log: str, name: str, *, most: int, memory: int = 0) -> None:
        """A child on every device, at most so many, see `Machine.spread` and `Child.memory`."""
        if most:
            self._machine.spread(Child(module, job, log, name, waited=self._waits.append, memory=memory), most)

    def together(self, module: str, job: Mapping[str, Any], log: str, name: str, *, command: Command) -> None:
        """A child over all devices, see `Machine.together`."""
        self._machine.together(Child(module, job, log, name, waited=self._waits.append), command)

    def work_dir(self, stage: Stage) -> Path:
        """A folder that survives a crash, for what the stage can resume from."""
        return self.store.work_dir(stage.spec(), elsewhere=self._machine.elsewhere)

    def collect(self, files: Iterable[Path]) -> None:
        """Has pieces that children made on other disks in this machine's work folder."""
        if self._machine.elsewhere:
            self.store.collect(files)
