"""How far a run is, on disk: one small file beside its logs, for whoever looks from another process.

The run's own process replaces it every few seconds; nobody waits for anybody.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spin_core.runtime.progress import Parts, Progress
from spin_core.store.files import replace_text

_FILE = "progress.json"
_NOTES = 20


@dataclass
class Entry:
    """One piece of work: its parts' progress added up."""

    name: str
    total: float
    unit: str
    began: float  # seconds since the epoch
    changed: float
    done: float = 0.0
    note: str = ""

    @property
    def left_s(self) -> float | None:
        """Seconds that it will take yet at its rate so far; None where nothing tells."""
        if not 0 < self.done < self.total or self.total <= 1:
            return None
        return (self.changed - self.began) / self.done * (self.total - self.done)


@dataclass
class Shown:
    """What the file of a run says."""

    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    ended: str | None = None  # None while it runs, or where it was killed; else why it ended, empty for a good end


class Board:
    """Adds up progress events by name; thread-safe."""

    def __init__(self, folder: Path) -> None:
        self._path, self._lock = folder / _FILE, threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._parts: dict[str, Parts] = {}
        self._notes: deque[str] = deque(maxlen=_NOTES)
        self._ended: str | None = None

    def note(self, event: Progress) -> float:
        """Takes an event in; what all parts of its name have done."""
        with self._lock:
            if not event.total:
                self._notes.append(f"{event.name}: {event.note}")
                return 0.0
            parts, now = self._parts.setdefault(event.name, Parts()), time.time()
            if parts.total >= event.total and event.done < parts[event.part]:  # the stage was done and starts anew, under another model
                parts = self._parts[event.name] = Parts()
            if not parts:
                self._entries.pop(event.name, None)  # to the end, where the newest are
                self._entries[event.name] = Entry(event.name, event.total, event.unit, now, now)
            parts[event.part] = event.done
            entry = self._entries[event.name]
            entry.done, entry.total, entry.unit, entry.note, entry.changed = parts.total, event.total, event.unit, event.note, now
            return entry.done

    def end(self, why: str) -> None:
        """The run has ended: well, where `why` is empty."""
        self._ended = why
        self.write()

    def write(self) -> None:
        """Replaces the file."""
        with self._lock:
            content = {"entries": [asdict(entry) for entry in self._entries.values()], "notes": [*self._notes], "ended": self._ended}
        replace_text(self._path, json.dumps(content, ensure_ascii=False))


def read_board(folder: Path) -> Shown:
    """What a run's folder of logs says; nothing where it has no such file yet."""
    try:
        found: Mapping[str, Any] = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        return Shown([Entry(**entry) for entry in found["entries"]], found["notes"], found["ended"])
    except (OSError, ValueError, KeyError, TypeError):
        return Shown()
