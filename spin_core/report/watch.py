"""`spinflow status --watch`: a campaign that another process runs, live in the terminal."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from spin_core.campaign.ledger import Ledger
from spin_core.campaign.survey import Line, survey
from spin_core.campaign.workspace import latest_logs, running
from spin_core.recipe import Recipe
from spin_core.runtime.board import Entry, Shown, read_board
from spin_core.runtime.errors import SpinflowError
from spin_core.runtime.redact import redact
from spin_core.store import Store

_LOOK_EVERY_S = 1.0
_SURVEY_EVERY_S = 5.0
_PLAIN_EVERY_S = 10.0  # between two pictures where there is no terminal
_BAD = re.compile(r"\| (WARNING|ERROR|CRITICAL)\s*\|")
_LINES, _TAIL_BYTES = 5, 2**16


def watch(store: Store, recipe: Recipe, console: Console, pause: Callable[[float], None] = time.sleep) -> None:
    """Shows how far the campaign is until no process runs it any more; a Ctrl-C ends the watching, not the run."""
    look = _Looks(store, recipe)
    try:
        if console.is_terminal:
            with Live(look.picture(), console=console, auto_refresh=False, transient=True) as live:
                while look.running:
                    pause(_LOOK_EVERY_S)
                    live.update(look.picture(), refresh=True)
        else:
            picture = look.picture()
            while look.running:
                console.print(picture)
                pause(_PLAIN_EVERY_S)
                picture = look.picture()
        console.print(look.picture())
    except KeyboardInterrupt:
        console.print("watching ended; the run goes on")


class _Looks:
    """One campaign, looked at again and again."""

    def __init__(self, store: Store, recipe: Recipe) -> None:
        self._store, self._recipe = store, recipe
        self._surveyed = -_SURVEY_EVERY_S
        self._lines: list[Line] = []
        self._problem = ""
        self.running = ""

    def picture(self) -> RenderableType:
        """Where the run is: what it does now, what it has done, what is left of the turn, and what went wrong."""
        self.running = running(self._store, self._recipe.name)
        if time.monotonic() - self._surveyed >= _SURVEY_EVERY_S:
            self._survey()
        folder = latest_logs(self._store, self._recipe.name)
        shown = read_board(folder) if folder else Shown()
        parts: list[RenderableType] = [Text(self._head(shown), style="bold")]
        if shown.entries:
            parts.append(_bars(shown.entries, bool(self.running)))
        parts += [Text(text) for text in self._turn()]
        if folder:
            lines = (*shown.notes[-_LINES:], *_bad_lines(folder / "flow.log"))
            parts += [Text(line, style="yellow", no_wrap=True, overflow="ellipsis") for line in lines]
        return Group(*parts)

    def _survey(self) -> None:
        try:
            self._lines = list(survey(self._store, Ledger(self._store, self._recipe.name).pinned(self._recipe, begin=False)))
            self._problem = ""
        except SpinflowError as error:
            self._problem = f"what is left cannot be said: {error}"
        self._surveyed = time.monotonic()

    @property
    def _iteration(self) -> int | None:
        """The first that is not done."""
        return next((line.iteration for line in self._lines if not line.done), None)

    def _head(self, shown: Shown) -> str:
        count = len(self._recipe.iterations)
        where = "" if self._iteration is None else f" · iteration {self._iteration} of 0 … {count - 1}"
        if self.running:
            state = f"running in {self.running.partition(' (')[0]}"
        elif shown.ended:
            state = f"not running; the last run ended with: {shown.ended}"
        elif shown.ended is None and shown.entries:
            state = "not running; the last run was ended from outside; `spinflow run` goes on"
        else:
            state = "not running"
        return f"{self._recipe.name}{where} · {state}"

    def _turn(self) -> Iterator[str]:
        """What of the turn is done, and what is left of it."""
        if self._problem:
            yield self._problem
        for title, done in (("done", True), ("to do", False)):
            names = [line.stage for line in self._lines if line.iteration == self._iteration and line.done is done]
            if names:
                yield f"{title}: {', '.join(names)}"


def _bars(entries: list[Entry], alive: bool) -> Table:
    """A row a piece of work: those that are done with their seconds, the others with a bar, their rate and the time left."""
    table = Table.grid(padding=(0, 2))
    for least in (22, 7, 0, 10, 8, 5, 5):  # in 80 columns, names and notes are cut short
        table.add_column(no_wrap=True, overflow="ellipsis", min_width=least)
    for entry in entries:
        finished = entry.done >= entry.total
        state = Text("done", style="green") if finished else Text("at work" if alive else "unfinished", style="cyan" if alive else "red")
        counts = f"{entry.done:g}/{entry.total:g} {entry.unit}".strip() if entry.total > 1 else ""
        bar = "" if finished or entry.total <= 1 else ProgressBar(entry.total, entry.done, width=12)
        spent = (entry.changed if finished or not alive else time.time()) - entry.began
        left = f"{_time(entry.left_s)} left" if alive and entry.left_s is not None else ""
        table.add_row(entry.name, state, bar, counts, entry.note, _time(spent), left)
    return table


def _bad_lines(log: Path) -> list[str]:
    """The last lines of a run's log that warn, without those that say the same again."""
    try:
        with log.open("rb") as handle:
            handle.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = handle.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    found = [line for line in lines if _BAD.search(line)][-_LINES:]
    first = found[:1]
    return [redact(line) for line in (*first, *(line for before, line in pairwise(found) if line[12:] != before[12:]))]


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
