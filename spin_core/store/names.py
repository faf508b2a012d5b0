"""What an artifact is called, what determines it, and where it lies."""

from __future__ import annotations

import calendar
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

MANIFEST = "MANIFEST.json"


class Source(Protocol):
    """Where artifacts are that this machine may not have: an object store."""

    def knows(self, ref: Ref) -> bool:
        """Whether it was committed there, as far as this process has heard."""
        ...

    def manifest(self, ref: Ref) -> dict[str, Any]:
        """Its manifest. Raises FileNotFoundError."""
        ...

    def bring(self, ref: Ref) -> None:
        """Has all its files in its folder here; nothing for one that was not made yet."""
        ...

    def bring_file(self, ref: Ref, name: str) -> Path:
        """Has one of its files here, and says where."""
        ...

    def place(self, ref: Ref) -> str:
        """Where it is there, for people."""
        ...


@dataclass(frozen=True)
class Ref:
    """An artifact, finished or planned: small enough to be passed between Prefect tasks."""

    kind: str
    digest: str
    folder: Path  # where it lies on this machine, once it is here: what jobs name, since their machine brings it
    source: Source | None = field(default=None, compare=False, repr=False)

    @property
    def path(self) -> Path:
        """Its folder, with all its files in it where it was made: what is only in the object store is brought."""
        if self.source:
            self.source.bring(self)
        return self.folder

    def file(self, name: str) -> Path:
        """One of its files, without the others where they are not here."""
        return self.source.bring_file(self, name) if self.source and not self.here else self.folder / name

    @property
    def name(self) -> str:
        """What locks and folders of work on it are called: the name of its spec."""
        return f"{self.kind}-{self.digest}"

    @property
    def here(self) -> bool:
        """Whether its files are on this machine."""
        return (self.folder / MANIFEST).is_file()

    @property
    def done(self) -> bool:
        """Whether it was committed."""
        return self.source.knows(self) if self.source else self.here

    @property
    def manifest(self) -> dict[str, Any]:
        """What was written when the artifact was committed: spec, parents, files, rows, facts, versions."""
        if self.source and not self.here:
            return self.source.manifest(self)
        found: dict[str, Any] = json.loads((self.folder / MANIFEST).read_text())
        return found

    @property
    def facts(self) -> dict[str, Any]:
        """Figures that the stage measured (seconds, tokens, …): recorded, but not part of the digest."""
        found: dict[str, Any] = self.manifest["facts"]
        return found

    @property
    def made(self) -> float:
        """When it was committed, in seconds since the epoch; where it is not here, in whole ones."""
        if self.here:
            return (self.folder / MANIFEST).stat().st_mtime
        return created(self.manifest)

    @property
    def bytes(self) -> int:
        """Of its files, by its manifest."""
        return sum(entry["bytes"] for entry in self.manifest["files"].values())

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return self.source.place(self) if self.source and not self.here else str(self.folder)


@dataclass(frozen=True)
class Spec:
    """What determines an artifact's content."""

    kind: str
    version: int  # raised by hand when the stage's output changes
    params: Mapping[str, Any]
    parents: tuple[Ref, ...] = ()

    @cached_property
    def digest(self) -> str:
        """24 hex digits over kind, version, parameters and parents."""
        content = {
            "kind": self.kind,
            "version": self.version,
            "params": self.params,
            "parents": [parent.digest for parent in self.parents],
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:24]

    @property
    def name(self) -> str:
        """Of its lock, its staging folder and its work folder."""
        return f"{self.kind}-{self.digest}"


def created(manifest: Mapping[str, Any]) -> float:
    """When an artifact was committed, in whole seconds since the epoch."""
    return float(calendar.timegm(time.strptime(manifest["created"], "%Y-%m-%dT%H:%M:%SZ")))
