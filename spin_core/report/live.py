"""Progress bars in a terminal; a line every ten seconds where there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from spin_core.progress import Listener, Progress, listen

_LINE_EVERY_S = 10.0


@contextmanager
def bars(console: Console) -> Iterator[None]:
    """Shows the progress events of this process until the block ends."""
    if not console.is_terminal:
        end = listen(_lines(console))
        try:
            yield
        finally:
            end()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Bars(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as shown:
        lock = threading.Lock()
        tasks: dict[str, TaskID] = {}

        def draw(event: Progress) -> None:
            with lock:
                if event.name not in tasks or shown.tasks[tasks[event.name]].finished:
                    if event.name in tasks:  # the same stage of the next iteration: start its bar anew
                        shown.update(tasks[event.name], visible=False)
                    tasks[event.name] = shown.add_task(event.name, total=event.total, note=event.note)
                shown.update(tasks[event.name], completed=event.done, total=event.total, note=event.note)

        end = listen(draw)
        try:
            yield
        finally:
            end()


def _lines(console: Console) -> Listener:
    last: dict[str, float] = {}

    def draw(event: Progress) -> None:
        now = time.monotonic()
        if event.done >= event.total or now - last.get(event.name, 0.0) >= _LINE_EVERY_S:
            last[event.name] = now
            console.print(f"{event.name}: {event.done:g}/{event.total:g} {event.unit} {event.note}", markup=False, highlight=False)

    return draw
