"""Progress bars in a terminal; a line every ten seconds where there is none."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from spin_core.runtime.progress import Listener, Progress, listen

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
        parts: dict[str, dict[int, float]] = defaultdict(dict)

        def draw(event: Progress) -> None:
            with lock:
                if not event.total:
                    shown.console.print(f"{event.name}: {event.note}", markup=False, highlight=False, soft_wrap=True)
                    return
                again = event.name in tasks and event.done == 0 and shown.tasks[tasks[event.name]].finished
                if again:  # the same stage of the next iteration: its bar starts anew
                    shown.update(tasks[event.name], visible=False)
                    parts[event.name].clear()
                if again or event.name not in tasks:
                    tasks[event.name] = shown.add_task(event.name, total=event.total, note=event.note)
                parts[event.name][event.part] = event.done
                shown.update(tasks[event.name], completed=sum(parts[event.name].values()), total=event.total, note=event.note)

        end = listen(draw)
        try:
            yield
        finally:
            end()


def _lines(console: Console) -> Listener:
    last: dict[str, float] = {}
    parts: dict[str, dict[int, float]] = defaultdict(dict)

    def draw(event: Progress) -> None:
        if not event.total:
            console.print(f"{event.name}: {event.note}", markup=False, highlight=False, soft_wrap=True)
            return
        now = time.monotonic()
        parts[event.name][event.part] = event.done
        done = sum(parts[event.name].values())
        if done >= event.total or now - last.get(event.name, 0.0) >= _LINE_EVERY_S:
            last[event.name] = now
            console.print(f"{event.name}: {done:g}/{event.total:g} {event.unit} {event.note}", markup=False, highlight=False)

    return draw
