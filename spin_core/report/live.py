"""Progress bars in a terminal; where there is none, a line every ten seconds and one at each end, none of them twice."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from spin_core.runtime.progress import Parts, Progress, listen

_LINE_EVERY_S = 10.0


@contextmanager
def bars(console: Console) -> Iterator[None]:
    """Shows the progress events of this process until the block ends."""
    if not console.is_terminal:
        end = listen(_Lines(console).draw)
        try:
            yield
        finally:
            end()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as shown:
        lock, notes = threading.Lock(), _Notes()
        tasks: dict[str, TaskID] = {}
        parts: dict[str, Parts] = defaultdict(Parts)

        def draw(event: Progress) -> None:
            with lock:
                if not event.total:
                    if line := notes.line(event):
                        shown.console.print(line, markup=False, highlight=False, soft_wrap=True)
                    return
                again = event.name in tasks and event.done == 0 and shown.tasks[tasks[event.name]].finished
                if again:  # the same stage of the next iteration: its bar starts anew
                    shown.update(tasks[event.name], visible=False)
                    parts[event.name] = Parts()
                if again or event.name not in tasks:
                    tasks[event.name] = shown.add_task(event.name, total=event.total, note=event.note)
                parts[event.name][event.part] = event.done
                shown.update(tasks[event.name], completed=parts[event.name].total, total=event.total, note=event.note)

        end = listen(draw)
        try:
            yield
        finally:
            end()


class _Lines:
    """What a log file of the console gets."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._notes = _Notes()
        self._parts: dict[str, Parts] = defaultdict(Parts)
        self._due: dict[str, float] = {}  # when a stage's next line may be printed
        self._ended: set[str] = set()

    def draw(self, event: Progress) -> None:
        """Prints a line if one is due."""
        with self._lock:
            text = self._notes.line(event) if not event.total else self._line(event)
            if text:
                self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _line(self, event: Progress) -> str:
        name, now = event.name, time.monotonic()
        if name in self._ended:
            if event.done >= self._parts[name][event.part]:
                return ""
            self._ended.remove(name)  # the same stage of the next iteration
            self._parts[name] = Parts()
            self._due.pop(name, None)
        self._parts[name][event.part] = event.done
        done = self._parts[name].total
        if done >= event.total:
            self._ended.add(name)
        elif now < self._due.setdefault(name, now + _LINE_EVERY_S):
            return ""
        self._due[name] = now + _LINE_EVERY_S
        counts = f"{done:g}/{event.total:g} {event.unit}" if event.total > 1 else "done" if done else ""
        return f"{name}: {' '.join(part for part in (counts.strip(), event.note) if part)}" if counts or event.note else ""


class _Notes:
    """Things to read, each told once."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def line(self, event: Progress) -> str:
        """The line of a note, empty if it was told."""
        line = f"{event.name}: {event.note}"
        if line in self._told:
            return ""
        self._told.add(line)
        return line
