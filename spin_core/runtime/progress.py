"""Progress events from the stages to whoever shows them: the terminal or the Prefect UI."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from spin_core.runtime.redact import redact

_PREFIX = "@progress "
_EVERY_S = 0.5
MACHINE = "this machine"  # the name of what a child says of it


@dataclass(frozen=True)
class Progress:
    """How far one piece of work is."""

    name: str  # for example "iter-0 · training"
    done: float
    total: float
    unit: str = ""
    note: str = ""  # for example "412 tokens/s"
    part: int = 0  # which of the pieces that share this name and total (shards); `done` is the piece's own


class Parts:
    """What the parts of one piece of work have done, added up; an event costs the same among ten parts and ten thousand."""

    def __init__(self) -> None:
        self._done: dict[int, float] = {}
        self.total = 0.0

    def __getitem__(self, part: int) -> float:
        """What one part has done; 0 before it has told."""
        return self._done.get(part, 0.0)

    def __setitem__(self, part: int, done: float) -> None:
        more = done - self[part]
        self._done[part] = done
        self.total = self.total + more if len(self._done) > 1 else done  # one alone is not rounded

    def __bool__(self) -> bool:
        return bool(self._done)


Listener = Callable[[Progress], None]
_listeners: list[Listener] = []


def listen(listener: Listener) -> Callable[[], None]:
    """Calls `listener` for every event of this process; returns a function that ends it."""
    _listeners.append(listener)
    return lambda: _listeners.remove(listener)


def emit(event: Progress) -> None:
    """Tells every listener. What a person should read is shown, logged and sent to the server, so it goes without secrets."""
    if not event.total:
        event = replace(event, note=redact(event.note))
    for listener in list(_listeners):
        listener(event)


def tell(name: str, text: str) -> None:
    """Tells every listener something that a person should read and that has no length: an event of total 0."""
    emit(Progress(name, 0, 0, note=text))


def print_event(event: Progress) -> None:
    """In a child process: sends the event to the parent as a line on stdout."""
    print(_PREFIX + json.dumps(asdict(event)), flush=True)


class Teller:
    """In a child process: prints how far a piece of work is, at its beginning, twice a second at most, and when nothing is left."""

    def __init__(self, name: str, total: float, unit: str, done: float = 0) -> None:
        self._name, self._total, self._unit, self._done, self._due = name, total, unit, done, 0.0
        self.add(0)

    def add(self, more: float, note: str = "", *, ahead: float = 0) -> None:
        """So much more is done; so much more is now known to be `ahead`."""
        self._done, self._total, now = self._done + more, self._total + ahead, time.monotonic()
        if self._total and (now >= self._due or self._done >= self._total):
            self._due = now + _EVERY_S
            self.tell(note)

    def tell(self, note: str = "") -> None:
        """Prints where it stands, for a child that goes on no further than this."""
        print_event(Progress(self._name, self._done, self._total, self._unit, note))


def parse_line(line: str) -> Progress | None:
    """The event that a child printed, or None for an ordinary line."""
    return Progress(**json.loads(line[len(_PREFIX) :])) if line.startswith(_PREFIX) else None
