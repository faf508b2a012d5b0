"""What an unfinished stage can go on from, kept in the object store while it works, so that another machine can.

work/<kind>-<digest>/INDEX.json    the files, written after their parts
work/<kind>-<digest>/<sha256>      parts
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spin_core.runtime.errors import SpinflowError
from spin_core.runtime.progress import tell
from spin_core.store.files import replace_text
from spin_core.store.remote import moving
from spin_core.store.remote.bucket import Bucket
from spin_core.store.remote.moving import Sent

EVERY_S = 15.0
_MARK = ".mirrored"  # the index that the folder had or got last
_HERE_ONLY = {".lock", ".part", ".arrow"}  # rows.arrow is made anew from pairs faster than it is fetched
Seen = dict[str, tuple[int, int]]  # bytes and time of change of a file


class Mirror:
    """One work folder and its copy in the store, in one process."""

    def __init__(self, bucket: Bucket, folder: Path) -> None:
        self._bucket, self._folder, self._prefix = bucket, folder, f"work/{folder.name}"
        self._over, self._thread = threading.Event(), threading.Thread(target=self._go_on, daemon=True, name=f"mirror-{folder.name}")
        self._seen: Seen = {}
        self._sent: dict[str, Sent] = {}

    def begin(self) -> None:
        """Has the folder as whoever worked on it last left it, and keeps the store's copy up to date from now on."""
        found = self._bucket.read(f"{self._prefix}/INDEX.json")
        mark = self._folder / _MARK
        if found:
            self._sent = json.loads(found[0])
            if not (mark.is_file() and mark.read_bytes() == found[0]):  # else this machine is at least as far
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder.mkdir(parents=True)
                moving.fetch(self._bucket, self._prefix, self._sent, self._folder, lambda size: None)
                mark.write_bytes(found[0])
                self._seen = _state(self._folder)
        self._thread.start()

    def end(self, *, finished: bool) -> None:
        """Stops; what was `finished` needs no copy any more, of the rest the last state is kept."""
        self._over.set()
        self._thread.join()
        if finished:
            discard(self._bucket, self._folder.name)
        else:
            self._look()

    def _go_on(self) -> None:
        while not self._over.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        try:
            self.copy()
        except (SpinflowError, OSError) as error:  # the work itself goes on
            tell(f"{self._folder.name}: copy in the object store", f"is behind: {error}")

    def copy(self) -> None:
        """Sends what is new, then the index. Files that went meanwhile belong to a state that is over: nothing is written then."""
        seen = _state(self._folder)
        if not seen or seen == self._seen:
            return
        known = set(_parts(self._sent.values()))
        new = {name: self._folder / name for name in seen if self._seen.get(name) != seen[name]}
        try:
            sent = moving.send(self._bucket, self._prefix, new, known, lambda size: None)
        except FileNotFoundError:
            return
        later = _state(self._folder)
        if any(later.get(name) != seen[name] for name in new):
            return  # it was written to while it was read; the next look has it whole
        self._sent = {name: self._sent[name] if name not in sent else sent[name] for name in seen}
        index = json.dumps(self._sent, sort_keys=True)
        self._bucket.put(f"{self._prefix}/INDEX.json", index.encode())
        replace_text(self._folder / _MARK, index)
        self._seen = seen
        self._bucket.delete(f"{self._prefix}/{part}" for part in known - set(_parts(self._sent.values())))


def discard(bucket: Bucket, name: str) -> None:
    """Removes a work folder's copy, its index first."""
    entries = sorted((entry.name for entry in bucket.list(f"work/{name}")), key=lambda found: not found.endswith("INDEX.json"))
    bucket.delete(entries[:1])
    bucket.delete(entries[1:])


def _state(folder: Path) -> Seen:
    found: Seen = {}
    for file in sorted(folder.rglob("*")):
        try:
            if file.is_file() and not file.name.startswith(".") and file.suffix not in _HERE_ONLY:
                about = file.stat()
                found[str(file.relative_to(folder))] = about.st_size, about.st_mtime_ns
        except FileNotFoundError:
            continue
    return found


def _parts(entries: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for entry in entries:
        yield from entry.get("parts", [entry["sha256"]])
