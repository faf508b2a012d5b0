"""Where stages run: their children, devices, engines and resume folders on this machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Protocol

from spin_core.runtime import devices, process
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
    """Runs stages on this machine, each as children of this process."""

    def __init__(self, store: Store, campaign: str = "", engines: Any = None) -> None:
        self.store, self.campaign = store, campaign
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
        self,
        module: str,
        job: Mapping[str, Any],
        log: str,
        name: str,
        *,
        group: Sequence[devices.Device] = (),
        command: Sequence[str] = (),
        part: int = 0,
        env: Mapping[str, str] | None = None,
    ) -> None:
        """Runs `python [command] -m module` on `job` to its end, with a group of devices held meanwhile; raises as `run_job` does.

        `env` has what must not stand in the job's file.
        """
        asked = time.monotonic()
        with devices.hold(group, purpose=name) as held:
            if group:
                self._waits.append(time.monotonic() - asked)
            env = devices.environment(group) | dict(env or {})
            process.run_job(module, job, self.store.log_path(log), launcher=command, name=name, part=part, env=env, fds=held.fds)

    def jobs(
        self, module: str, jobs: Sequence[Mapping[str, Any]], log: str, name: str, *, groups: Sequence[Sequence[devices.Device]]
    ) -> None:
        """Like `job`, a child a group side by side, each on a job of its own.

        Raises what the first of them raised, once all have ended: the others go on and can take over what it left.
        """
        if len(jobs) == 1:
            self.job(module, jobs[0], log, name, group=groups[0])
            return
        failures: list[BaseException] = []

        def run(part: int) -> None:
            try:
                self.job(module, jobs[part], f"{log}-{part}" if part else log, name, group=groups[part], part=part)
            except BaseException as error:
                failures.append(error)

        # a child dies with the thread that started it; daemons, so that a run that is ended does not wait for them
        threads = [threading.Thread(target=run, args=(part,), daemon=True) for part in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def work_dir(self, stage: Stage) -> Path:
        """A folder that survives a crash, for what the stage can resume from."""
        return self.store.work_dir(stage.spec())
