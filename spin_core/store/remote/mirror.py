"""What an unfinished stage can go on from, kept in the object store while it works, so that another machine can.

work/<kind>-<digest>/<rank>/INDEX.json    the files of one machine, written after their parts, only by who has begun last
work/<kind>-<digest>/<rank>/<sha256>      parts
shares/<kind>-<digest>/<file>             pieces that several machines make side by side, see `spin_core.store.shares`
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from uuid import uuid4

from spin_core.runtime.errors import SpinflowError
from spin_core.runtime.progress import tell
from spin_core.store.files import replace_text
from spin_core.store.remote import moving
from spin_core.store.remote.bucket import Bucket, Version
from spin_core.store.remote.moving import Sent

EVERY_S = 15.0
_INDEX = "INDEX.json"
_MARK = ".mirrored"  # the index that the folder had or got last
_HERE_ONLY = {".lock", ".part", ".arrow"}  # rows.arrow is made anew from pairs faster than it is fetched
Seen = dict[str, tuple[int, int]]  # bytes and time of change of a file


class Mirror:
    """One work folder and its copy in the store. Of several machines that work on one stage together each has its own, by `rank`."""

    def __init__(self, bucket: Bucket, folder: Path, name: str, rank: int = 0) -> None:
        self._bucket, self._folder, self._name, self._prefix = bucket, folder, name, f"work/{name}/{rank}"
        self._index = f"{self._prefix}/{_INDEX}"
        self._owner, self._version = uuid4().hex, Version(None, None)
        self._over, self._thread = threading.Event(), threading.Thread(target=self._go_on, daemon=True, name=f"mirror-{name}")
        self._seen: Seen = {}
        self._others: Seen = {}  # files of other machines, as they came: theirs to keep
        self._sent: dict[str, Sent] = {}

    def begin(self) -> None:
        """Has the folder as those who worked on it last left it, and keeps the store's copy up to date from now on."""
        indexes = {entry.name for entry in self._bucket.list(f"work/{self._name}") if entry.name.endswith(_INDEX)}
        found = {name: data for name in sorted(indexes) if (data := self._bucket.get(name))}
        self._sent = json.loads(found[self._index])["files"] if self._index in found else {}
        mark = self._folder / _MARK
        if found and not (mark.is_file() and mark.read_bytes() == found.get(self._index)):  # else this machine is at least as far
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            for index, data in found.items():
                files = {name: entry for name, entry in json.loads(data)["files"].items() if index == self._index or name not in self._sent}
                moving.fetch(self._bucket, index.rpartition("/")[0], files, self._folder, lambda size: None)
            state = _state(self._folder)
            self._seen = {name: seen for name, seen in state.items() if name in self._sent}
            self._others = {name: seen for name, seen in state.items() if name not in self._sent}
        self._take_over(self._sent)
        self._thread.start()

    def _take_over(self, files: Mapping[str, Sent]) -> None:
        """From now on nobody who began before can write the index: it may be at work still, on a machine that was cut off."""
        while True:
            before, text = self._bucket.read(self._index), self._text(files)
            written = self._bucket.replace(self._index, text, before[1]) if before else self._bucket.create(self._index, text)
            if written:
                self._version = written
                replace_text(self._folder / _MARK, text.decode())
                return

    def _text(self, files: Mapping[str, Sent]) -> bytes:
        return json.dumps({"owner": self._owner, "files": files}, sort_keys=True).encode()

    def end(self, *, keep: bool = True) -> None:
        """Stops, if it has begun; the last state is kept, unless nobody will go on from it."""
        if not self._thread.ident:
            return
        self._over.set()
        self._thread.join()
        if keep:
            self._look()

    def _go_on(self) -> None:
        while not self._over.wait(EVERY_S):
            self._look()

    def _look(self) -> None:
        try:
            self.copy()
        except (SpinflowError, OSError) as error:  # the work itself goes on
            tell(f"{self._name}: copy in the object store", f"is behind: {error}")

    def copy(self) -> None:
        """Sends what is new, then the index. Files that went meanwhile belong to a state that is over: nothing is written then."""
        seen = {name: state for name, state in _state(self._folder).items() if self._others.get(name) != state}
        if not seen or seen == self._seen:
            return
        known = set(moving.parts_of(self._sent.values()))
        new = {name: self._folder / name for name in seen if self._seen.get(name) != seen[name] or name not in self._sent}
        try:
            sent = moving.send(self._bucket, self._prefix, new, known, lambda size: None)
        except FileNotFoundError:
            return
        later = _state(self._folder)
        if any(later.get(name) != seen[name] for name in new):
            return  # it was written to while it was read; the next look has it whole
        self._sent = {name: sent.get(name) or self._sent[name] for name in seen}
        text = self._text(self._sent)
        written = self._bucket.replace(self._index, text, self._version)
        if written is None:
            self._over.set()
            tell(f"{self._name}: copy in the object store", "another run has taken this over")
            return
        self._version, self._seen = written, seen
        replace_text(self._folder / _MARK, text.decode())
        self._bucket.delete(f"{self._prefix}/{part}" for part in known - set(moving.parts_of(self._sent.values())))


def discard(bucket: Bucket, name: str) -> None:
    """Removes a work folder's copy, its indexes first."""
    for folder in ("work", "shares"):
        names = [entry.name for entry in bucket.list(f"{folder}/{name}")]
        indexes = {found for found in names if found.endswith(_INDEX)}
        bucket.delete(indexes)
        bucket.delete({*names} - indexes)


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
