"""What a run shows while it goes on: its name and tags, progress artifacts, and the children's own lines in its log.

Everything here runs beside the work, in one thread that looks every few seconds, and never fails the run.
"""

from __future__ import annotations

import contextvars
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger

from spin_core.campaign.workspace import open_run_logs
from spin_core.runtime.board import Board
from spin_core.runtime.progress import Progress, listen
from spin_core.runtime.redact import redact
from spin_core.store import Store

_LOOK_EVERY_S = 5.0
_SAY_EVERY_S = 30.0
_LINES_A_LOOK = 10  # of one child; the rest stays in its log file
_FLOW_LOG = "flow.log"
_BAR = re.compile(r"\b(?!100%)\d{1,2}%\|")  # a progress bar on its way
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def label_run(campaign: str, iteration: int | None = None) -> None:
    """Names the flow run for people and tags it, so that the UI finds a campaign's and an iteration's runs."""
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow_run is not None
    name, tags = campaign, {*context.flow_run.tags, f"campaign:{campaign}"}
    if iteration is not None:
        name, tags = f"{campaign} · iter-{iteration}", tags | {f"iteration:{iteration}"}
    with get_client(sync_client=True) as client:
        client.update_flow_run(context.flow_run.id, name=name, tags=sorted(tags))
    context.flow_run.name, context.flow_run.tags = name, sorted(tags)


@contextmanager
def watched(store: Store, campaign: str) -> Iterator[None]:
    """Gives the run a log folder, and follows progress events and the children's logs until the block ends."""
    folder = open_run_logs(store, campaign)
    _open_flow_log(folder / _FLOW_LOG)
    watch = _Watch(folder, campaign)
    end, why = listen(watch.note), ""
    try:
        yield
    except BaseException as error:
        why = redact(" ".join(str(error).split())) or type(error).__name__
        raise
    finally:
        end()
        watch.stop(why)


class _FlowLog(logging.FileHandler):
    """The run's own log lines, in the console's format."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Silent: on a full disk logging would print a traceback for every line, around the one that says what to do."""


def _open_flow_log(path: Path) -> None:
    """Stays open after the session: a failed run's traceback is logged when its flow function has returned."""
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _FlowLog)]:
        root.removeHandler(old)
        old.close()
    new = _FlowLog(path, encoding="utf-8")
    new.setFormatter(next((handler.formatter for handler in root.handlers if handler.formatter), None))
    root.addHandler(new)


class _Watch:
    def __init__(self, folder: Path, campaign: str) -> None:
        self._folder, self._campaign = folder, campaign
        self._log = get_run_logger()
        context = FlowRunContext.get()
        self._flow_run_id: UUID | None = context.flow_run.id if context and context.flow_run else None
        self._lock = threading.Lock()
        self._board = Board(folder)
        self._latest: dict[str, tuple[Progress, float]] = {}  # what has changed since the last look, and what all parts have done
        self._notes: list[str] = []  # not said yet
        self._artifacts: dict[str, UUID] = {}
        self._said: dict[str, float] = {}
        self._read: dict[Path, int] = {}
        self._stop = threading.Event()
        # with the flow run's context, so that the client is that of the run
        self._thread = threading.Thread(target=contextvars.copy_context().run, args=(self._look_until_stopped,), daemon=True)
        self._thread.start()

    def note(self, event: Progress) -> None:
        """Called by the stages' threads, and by an event loop: only remembers."""
        done = self._board.note(event)
        with self._lock:
            if event.total:
                self._latest[event.name] = (event, done)
            else:  # something to read, of no length
                self._notes.append(f"{event.name}: {event.note}")

    def stop(self, why: str) -> None:
        """Looks a last time and ends; `why` the run does, empty for a good end."""
        self._stop.set()
        self._thread.join(timeout=2 * _LOOK_EVERY_S)
        with suppress(OSError):  # a full disk has been told already
            self._board.end(why)

    def _look_until_stopped(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(_LOOK_EVERY_S)
            with suppress(OSError):
                self._board.write()
            try:
                self._tell_progress()
                self._tell_lines()
            except Exception as error:  # an unreachable server must not end the run
                self._log.debug("progress could not be shown: %s", error)

    def _tell_progress(self) -> None:
        with self._lock:
            changed = [*self._latest.values()]
            self._latest.clear()
            notes, self._notes = self._notes, []
        for note in notes:
            self._log.info(note)
        for event, done in changed:
            text = f"{event.name}: {done:g}/{event.total:g} {event.unit} {event.note}".strip()
            if event.total > 1:
                self._show(event.name, min(100.0, 100.0 * done / event.total), text)
            now = time.monotonic()
            if done >= event.total or now - self._said.get(event.name, 0.0) >= _SAY_EVERY_S:
                self._said[event.name] = now
                self._log.info(text)

    def _show(self, name: str, percent: float, text: str) -> None:
        with get_client(sync_client=True) as client:
            if name in self._artifacts:
                client.update_artifact(self._artifacts[name], ArtifactUpdate(data=percent, description=text))
                return
            key = artifact_key(self._campaign, name)
            new = ArtifactCreate(type="progress", key=key, description=text, data=percent, flow_run_id=self._flow_run_id)
            self._artifacts[name] = client.create_artifact(new).id

    def _tell_lines(self) -> None:
        for path in sorted(self._folder.glob("*.log")):
            if path.name == _FLOW_LOG:
                continue
            lines = self._new_lines(path)
            for line in lines[-_LINES_A_LOOK:]:
                self._log.info("%s | %s", path.stem, redact(line))
            if len(lines) > _LINES_A_LOOK:
                self._log.info("%s | %d more lines in %s", path.stem, len(lines) - _LINES_A_LOOK, path)

    def _new_lines(self, path: Path) -> list[str]:
        """Whole lines since the last look; of a bar that was redrawn, its last state."""
        with path.open("rb") as handle:
            handle.seek(self._read.get(path, 0))
            content = handle.read()
        content = content[: content.rfind(b"\n") + 1]
        self._read[path] = self._read.get(path, 0) + len(content)
        lines = [_ANSI.sub("", line.rstrip("\r").rsplit("\r", 1)[-1]).rstrip() for line in content.decode(errors="replace").split("\n")]
        return [line for line in lines if line and not _BAR.search(line)]


def artifact_key(*parts: str) -> str:
    """A key as Prefect asks for it: lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")
