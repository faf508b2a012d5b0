"""Artifacts in an object store: manifests, the parts of their files, and this machine's copies of both.

manifests/<kind>/<digest>.json     written last, and only where there is none: an artifact exists when this does
files/<kind>/<digest>/<sha256>     parts of its files
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from spin_core.runtime.errors import Corrupt
from spin_core.runtime.progress import Progress, emit
from spin_core.store.files import plain, replace_text
from spin_core.store.locks import locked, nobody
from spin_core.store.names import MANIFEST, Ref, created
from spin_core.store.remote import moving
from spin_core.store.remote.bucket import Bucket
from spin_core.store.remote.cache import Cache, touch
from spin_core.store.remote.moving import Moved, Sent

_LONG_AGO_S = 24 * 3600.0
_SHOWN = 16 * 2**20  # bytes from which on a transfer is shown


class Shelf:
    """The artifacts of one home; the `Source` of their Refs."""

    def __init__(self, bucket: Bucket, home: Path) -> None:
        self._bucket, self._home, self.cache = bucket, home, Cache(home)
        self._listed: set[tuple[str, str]] | None = None
        self._lock = threading.Lock()

    # what there is

    def all(self) -> list[tuple[str, str]]:
        """Kind and digest of all artifacts."""
        return sorted(self._known())

    def _known(self) -> set[tuple[str, str]]:
        """Listed once a process. What came since is in it where this process made it, else `committed` finds it."""
        with self._lock:
            if self._listed is None:
                names = (entry.name.removesuffix(".json").split("/")[-2:] for entry in self._bucket.list("manifests"))
                self._listed = {(kind, digest) for kind, digest in names}
                self._forget_removed(self._listed)
            return self._listed

    def _forget_removed(self, listed: set[tuple[str, str]]) -> None:
        """Drops copies of what another machine has removed; a listing may be behind, so each is asked for."""
        for file in self._home.glob(f"artifacts/*/*/{MANIFEST}"):
            key = file.parent.parent.name, file.parent.name
            if key in listed:
                continue
            if self._bucket.get(_manifest(*key)) is not None:
                listed.add(key)
            else:
                self._drop(Ref(*key, file.parent))

    def knows(self, ref: Ref) -> bool:
        """See `Source`."""
        return (ref.kind, ref.digest) in self._known() or ref.here

    def committed(self, ref: Ref) -> bool:
        """Whether it is there, also where another machine has just made it."""
        if self.knows(ref):
            return True
        try:
            self.manifest(ref)
        except FileNotFoundError:
            return False
        return True

    def manifest(self, ref: Ref) -> dict[str, Any]:
        """See `Source`. Read once a machine."""
        copy = self._copy(ref)
        try:
            text = copy.read_text()
        except FileNotFoundError:
            data = self._bucket.get(_manifest(ref.kind, ref.digest))
            if data is None:
                raise FileNotFoundError(ref.place) from None
            text = data.decode()
            replace_text(copy, text)
            self._known().add((ref.kind, ref.digest))
        found: dict[str, Any] = json.loads(text)
        return found

    def place(self, ref: Ref) -> str:
        """See `Source`."""
        return f"{self._bucket.url}/{_manifest(ref.kind, ref.digest)}"

    # there

    def send(self, kind: str, digest: str, folder: Path) -> dict[str, Sent]:
        """Sends a folder's files under an artifact's name. They are nothing until a manifest names them, see `commit`."""
        files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}
        prefix, total = _files(kind, digest), sum(file.stat().st_size for file in files.values())
        large = any(file.stat().st_size > moving.PART for file in files.values())
        known = {entry.name.rpartition("/")[2] for entry in self._bucket.list(prefix)} if large else set[str]()  # of a try that was cut off
        with _shown(f"{kind} {digest[:8]}: to {self._bucket.url}", total) as moved:
            return moving.send(self._bucket, prefix, files, known, moved)

    def commit(self, kind: str, digest: str, manifest: str) -> bool:
        """Makes the artifact exist. False where another machine was faster: then its files are the artifact's."""
        done = self._bucket.create(_manifest(kind, digest), manifest.encode()) is not None
        self._known().add((kind, digest))
        return done

    def remove(self, ref: Ref) -> None:
        """Removes an artifact, first its manifest: what is left after a crash is no artifact."""
        self._bucket.delete([_manifest(ref.kind, ref.digest)])
        self._known().discard((ref.kind, ref.digest))
        self._bucket.delete(entry.name for entry in self._bucket.list(_files(ref.kind, ref.digest)))
        self._drop(ref)

    # here

    def bring(self, ref: Ref) -> None:
        """See `Source`. Raises Corrupt where the store's files are not what the manifest says: they are set aside there."""
        if ref.here:
            touch(ref.folder)
            return
        if not self.committed(ref):
            return
        with locked(self._home / "locks" / f"bring-{ref.name}", nobody, "bringing it here"):
            if ref.here:
                return
            manifest = self.manifest(ref)
            coming = self._home / ".incoming" / ref.name
            coming.mkdir(parents=True, exist_ok=True)
            if self._some(ref).is_dir():  # what came alone need not come again
                shutil.copytree(self._some(ref), coming, dirs_exist_ok=True)
            self._bring(ref, manifest["files"], coming)
            text = self._copy(ref).read_text()
            replace_text(coming / MANIFEST, text)
            os.utime(coming / MANIFEST, (created(manifest), created(manifest)))
            ref.folder.parent.mkdir(parents=True, exist_ok=True)
            os.rename(coming, ref.folder)
            shutil.rmtree(self._some(ref), ignore_errors=True)

    def bring_file(self, ref: Ref, name: str) -> Path:
        """See `Source`."""
        files = self.manifest(ref)["files"]
        place = self._some(ref)
        if name in files and not (place / name).exists():
            coming = place.with_name(f".{ref.digest}-{uuid4().hex[:8]}")
            self._bring(ref, {name: files[name]}, coming)
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(coming / name, place / name)
        return place / name

    def fetch(self, kind: str, digest: str, files: Mapping[str, Sent], into: Path) -> None:
        """Files that were sent under an artifact's name, whether it exists or not."""
        moving.fetch(self._bucket, _files(kind, digest), files, into, lambda size: None)

    def _bring(self, ref: Ref, files: Mapping[str, Sent], into: Path) -> None:
        total = sum(entry["bytes"] for entry in files.values())
        self.cache.make_room(total)
        try:
            with _shown(f"{ref.kind} {ref.digest[:8]}: from {self._bucket.url}", total) as moved:
                moving.fetch(self._bucket, _files(ref.kind, ref.digest), files, into, moved)
        except Corrupt as error:
            self._set_aside(ref)
            raise Corrupt(str(error), remedy="what is damaged was set aside; run again, only that will be redone") from None

    def _set_aside(self, ref: Ref) -> None:
        """What is damaged in the store is no artifact any more; its parts stay for whoever wants to look, until `gc`."""
        key = _manifest(ref.kind, ref.digest)
        if data := self._bucket.get(key):
            self._bucket.put(f"corrupt/{ref.name}-{uuid4().hex[:8]}.json", data)
        self._bucket.delete([key])
        self._known().discard((ref.kind, ref.digest))
        self._drop(ref)

    def _drop(self, ref: Ref) -> None:
        self._copy(ref).unlink(missing_ok=True)
        self.cache.drop(ref.folder)

    def _some(self, ref: Ref) -> Path:
        """Single files of an artifact that is not here."""
        return self._home / "some" / plain(ref.kind) / plain(ref.digest)

    def _copy(self, ref: Ref) -> Path:
        return self._home / "manifests" / plain(ref.kind) / f"{plain(ref.digest)}.json"

    # what is no artifact

    def leftovers(self) -> Iterator[Left]:
        """Parts that no manifest has, artifacts that were set aside, and copies of work folders, whoever may need those."""
        found = dict[tuple[str, str], dict[str, int]]()
        for entry in self._bucket.list("files"):
            _, kind, digest, part = entry.name.split("/")
            found.setdefault((kind, digest), {})[part] = entry.bytes
        for (kind, digest), parts in sorted(found.items()):
            ref = Ref(kind, digest, self._home / "artifacts" / kind / digest, self)
            named = set(moving.parts_of(self.manifest(ref)["files"].values())) if self.committed(ref) else set()
            left = {f"{_files(kind, digest)}/{part}": size for part, size in parts.items() if part not in named}
            if left:
                yield self._left(_files(kind, digest), "no manifest has it", left)
        yield from (self._left(one.name, "was damaged, and set aside", {one.name: one.bytes}) for one in self._bucket.list("corrupt"))
        for one in (found for folder in ("claims", "sessions") for found in self._bucket.list(folder)):
            if time.time() - one.changed > _LONG_AGO_S:
                yield self._left(one.name, "its process is gone", {one.name: one.bytes})
        works = dict[str, dict[str, int]]()
        for entry in (found for folder in ("work", "shares") for found in self._bucket.list(folder)):
            works.setdefault(entry.name.split("/")[1], {})[entry.name] = entry.bytes
        yield from (self._left(f"work/{name}", "no campaign would go on from it", entries) for name, entries in works.items())

    def _left(self, name: str, why: str, entries: Mapping[str, int]) -> Left:
        lock = "-".join(name.split("/")[1:])
        return Left(name, why, sum(entries.values()), lock, lambda: self._bucket.delete(sorted(entries)))


@dataclass(frozen=True)
class Left:
    """Objects that belong to no artifact."""

    name: str
    why: str
    bytes: int
    lock: str  # whoever holds it may be making an artifact of them
    remove: Callable[[], None]


def _manifest(kind: str, digest: str) -> str:
    return f"manifests/{plain(kind)}/{plain(digest)}.json"


def _files(kind: str, digest: str) -> str:
    return f"files/{plain(kind)}/{plain(digest)}"


@contextmanager
def _shown(name: str, total: int) -> Iterator[Moved]:
    """Tells how far a transfer is, where it takes long enough to be looked at."""
    lock, done = threading.Lock(), 0

    def moved(size: int) -> None:
        nonlocal done
        with lock:
            done += size
            if total >= _SHOWN:
                emit(Progress(name, min(done, total) / 1e6, total / 1e6, "MB"))

    yield moved
