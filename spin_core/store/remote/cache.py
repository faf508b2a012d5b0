"""The folder on this machine that holds copies of what is in the object store: what is in use, and what goes when it is full."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from spin_core.runtime.errors import BadInput
from spin_core.store.names import MANIFEST, Ref

VARIABLE = "SPINFLOW_CACHE_GB"
_FREE = 0.1  # of the disk stays free, where the variable says nothing
_YOUNG_S = 600.0  # since it was last asked for: somebody is about to read it


class Cache:
    """The copies under one folder. Whoever needs some for long keeps them by a file that it holds a lock on, and that ends with it."""

    def __init__(self, home: Path) -> None:
        self._home = home

    @contextmanager
    def kept(self, refs: Iterable[Ref]) -> Iterator[None]:
        """No process on this machine removes these copies until the block ends."""
        file = self._home / "uses" / uuid4().hex
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            handle.write(json.dumps([f"{ref.kind}/{ref.digest}" for ref in refs]))
            handle.flush()
            try:
                yield
            finally:
                file.unlink(missing_ok=True)

    def make_room(self, size: int) -> None:
        """Removes copies that were not asked for longest until `size` more bytes fit. Raises BadInput where they cannot."""
        missing = self._over(size)
        if missing <= 0:
            return
        used, now = self._used(), time.time()
        copies = [path.parent for path in (self._home / "artifacts").glob(f"*/*/{MANIFEST}")]
        for folder in sorted(copies, key=_asked_for):
            if missing <= 0:
                return
            if f"{folder.parent.name}/{folder.name}" in used or now - _asked_for(folder) < _YOUNG_S:
                continue
            missing -= _size(folder)
            self.drop(folder)
        if missing > 0 and shutil.disk_usage(self._home).free < size:
            raise BadInput(
                f"{self._home} has no room for {size / 1e9:.1f} GB more", remedy="free some space, or set SPINFLOW_CACHE to a larger disk"
            )

    def drop(self, folder: Path) -> None:
        """Removes a copy: it is whole, or not there."""
        aside = self._home / ".staging" / f"dropped-{uuid4().hex}"
        aside.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process was faster
            os.rename(folder, aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _over(self, size: int) -> float:
        """Bytes that are too many once `size` more have come."""
        if bound := os.environ.get(VARIABLE):
            return _size(self._home / "artifacts") + size - float(bound) * 1e9
        disk = shutil.disk_usage(self._home)
        return size + _FREE * disk.total - disk.free

    def _used(self) -> set[str]:
        found = set[str]()
        for file in (self._home / "uses").glob("*"):
            with suppress(FileNotFoundError, ValueError), file.open() as handle:
                try:
                    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    file.unlink(missing_ok=True)  # its process is gone
                except BlockingIOError:
                    found.update(json.loads(handle.read() or "[]"))
        return found


def touch(folder: Path) -> None:
    """Notes that a copy was asked for."""
    with suppress(OSError):
        os.utime(folder)


def _asked_for(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _size(folder: Path) -> int:
    found = 0
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):
            found += file.stat().st_size if not file.is_dir() else 0
    return found
