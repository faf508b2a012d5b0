"""A node's own disk in the place of the run's, where the home is in an object store and no folder is shared.

What a job names of the home is brought to this node, and what the child makes is sent from here: models never pass through the
machine of the flow.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from spin_core.generation.engine import Sampler
from spin_core.store import Ref, Store
from spin_core.store.remote.mirror import Mirror

_OWN = (".staging", "work")  # rooms of a home that each host has for itself


@dataclass(frozen=True)
class RunHome:
    """The home of a run, for its nodes."""

    url: str
    folder: str  # on the machine of the flow, which the paths in its jobs begin with


@dataclass(frozen=True)
class Made:
    """Files of an artifact that a child made and its node has sent."""

    name: str  # kind and digest
    files: Mapping[str, Any]


class Disk:
    """A folder of one host's own, and the artifacts that this machine's hosts and flows share."""

    def __init__(self, run: RunHome) -> None:
        self._run, self.store = run, Store(run.url)
        self._folder = self.store.home / "nodes" / uuid4().hex
        self._folder.mkdir(parents=True)
        self._lock = (self._folder / ".lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._sweep()

    def here(self, sampler: Sampler, log: Path) -> tuple[Sampler, Path]:
        """A sampler whose model comes to this disk, and its log."""
        return replace(sampler, model=self.find(sampler.model)), self.store.log_path(log.stem)

    def find(self, ref: Ref) -> Ref:
        """An artifact of the run's home, whose files come to this disk once they are asked for."""
        return self.store.find(ref.kind, ref.digest)

    @contextmanager
    def job(self, job: Mapping[str, Any], rank: int | None, made: Callable[[Made], None]) -> Iterator[dict[str, Any]]:
        """The job for a child on this disk. Once the block has ended well, `made` is told what was made and sent.

        `rank`: its place in a training, whose work folder is gone on with, and kept in the object store while it lasts.
        """
        own: set[Path] = set()
        here: dict[str, Any] = self._translated(job, own) | {"shared": self._run.url}
        outs, works = ({folder for folder in own if folder.parent.name == room} for room in _OWN)
        for folder in own:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        assert self.store.bucket is not None
        ended_well = False
        mirrors = [Mirror(self.store.bucket, work, work.name, rank) for work in works if rank is not None]
        try:
            for mirror in mirrors:
                mirror.begin()
            with self.store.brought(here):
                yield here
            ended_well = True
        finally:
            for mirror in mirrors:
                mirror.end(keep=not ended_well)
        for out in outs:
            kind, _, digest = out.name.rpartition("-")
            assert self.store.shelf is not None
            made(Made(out.name, self.store.shelf.send(kind, digest, out)))
            shutil.rmtree(out, ignore_errors=True)

    def close(self) -> None:
        """Removes what is this host's alone."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.close()

    def _translated(self, value: Any, own: set[Path]) -> Any:
        """Paths of the run's home as paths of this disk; `own` gets the folders among them that are this host's alone."""
        if isinstance(value, str) and (value == self._run.folder or value.startswith(f"{self._run.folder}/")):
            rest = Path(value).relative_to(self._run.folder)
            room, *inside = rest.parts or ("",)
            if room not in _OWN:
                return str(self.store.home / rest)
            own.update(self._folder / room / name for name in inside[:1])
            return str(self._folder / rest)
        if isinstance(value, Mapping):
            return {name: self._translated(one, own) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self._translated(one, own) for one in value]
        return value

    def _sweep(self) -> None:
        """Removes what hosts that were killed have left."""
        for folder in self._folder.parent.iterdir():
            try:
                with (folder / ".lock").open() as handle:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
            except OSError:  # it is at work, or is just being made
                continue
