"""Files to the object store and back, in parts, several at once.

A part is an object named by its sha256, so what was sent before is not sent again, two senders cannot harm each other, and whatever is
read is verified. Parts are what multipart uploads are elsewhere, without uploads that are begun, never ended, and paid for.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

from spin_core.runtime.errors import Corrupt
from spin_core.store.files import fsync
from spin_core.store.remote.bucket import Bucket

PART = 32 * 2**20  # bytes
_AT_ONCE = 8
Moved = Callable[[int], None]  # told bytes that were moved, or need not be
Sent = dict[str, Any]  # bytes, sha256 and, where it has more than one, parts


def parts_of(entries: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The names of all parts of files, in order."""
    for entry in entries:
        yield from entry.get("parts", [entry["sha256"]])


def send(bucket: Bucket, prefix: str, files: Mapping[str, Path], known: Collection[str], moved: Moved) -> dict[str, Sent]:
    """Sends files; each is read once. `known`: names of parts that are there."""
    known, free, waiting = set(known), BoundedSemaphore(_AT_ONCE), list[Future[None]]()
    with ThreadPoolExecutor(_AT_ONCE) as pool:

        def send_part(name: str, data: bytes) -> None:
            try:
                bucket.put(f"{prefix}/{name}", data)
                moved(len(data))
            finally:
                free.release()

        def one(file: Path) -> Sent:
            whole, parts, size = hashlib.sha256(), list[str](), 0
            for data in _read(file):
                whole.update(data)
                name = hashlib.sha256(data).hexdigest()
                size += len(data)
                parts.append(name)
                if name in known:
                    moved(len(data))
                    continue
                known.add(name)
                free.acquire()  # so many parts are in memory at once
                waiting.append(pool.submit(send_part, name, data))
            return {"bytes": size, "sha256": whole.hexdigest()} | ({"parts": parts} if len(parts) > 1 else {})

        sent = {name: one(file) for name, file in files.items()}
        for future in waiting:
            future.result()
    return sent


def fetch(bucket: Bucket, prefix: str, files: Mapping[str, Sent], into: Path, moved: Moved) -> None:
    """Writes the files of a manifest into a folder. What lies there from an earlier try is kept where it is right.

    Raises Corrupt where a part is not there or is not what its name says.
    """

    def one(name: str, places: Sequence[tuple[Path, int]], size: int) -> None:
        missing = [place for place in places if hashlib.sha256(_at(*place, size)).hexdigest() != name]
        data = _part(bucket, f"{prefix}/{name}", name) if missing else b""
        for target, offset in missing:
            with target.open("r+b") as handle:
                os.pwrite(handle.fileno(), data, offset)
        moved(size * len(places))

    wanted = dict[str, list[tuple[Path, int]]]()
    sizes = dict[str, int]()
    for name, entry in files.items():
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
        os.truncate(target, entry["bytes"])
        offsets = range(0, max(1, entry["bytes"]), PART)
        for offset, part in zip(offsets, parts_of([entry]), strict=True):
            wanted.setdefault(part, []).append((target, offset))
            sizes[part] = min(PART, entry["bytes"] - offset)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for future in [pool.submit(one, part, places, sizes[part]) for part, places in wanted.items()]:
            future.result()
    for name in files:
        fsync(into / name)


def _at(file: Path, offset: int, size: int) -> bytes:
    with file.open("rb") as handle:
        return os.pread(handle.fileno(), size, offset)


def _part(bucket: Bucket, place: str, name: str) -> bytes:
    for _ in range(2):  # once more: what was wrong on the way is right in the store
        data = bucket.get(place)
        if data is not None and hashlib.sha256(data).hexdigest() == name:
            return data
    what = "is missing" if data is None else "is not what its name says"
    raise Corrupt(f"{bucket.url}/{place} {what}")


def _read(file: Path) -> Iterator[bytes]:
    with file.open("rb") as handle:
        empty = True
        while data := handle.read(PART):
            empty = False
            yield data
        if empty:
            yield b""
