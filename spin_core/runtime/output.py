"""What children print: a log, progress events, and at most one line that says why they end.

Lines with the progress prefix become events. A child that fails with a SpinflowError prints one line,
`@error {"kind": …, "text": …}`, and its parent raises the same kind of error.
"""

from __future__ import annotations

import json
import re
import signal
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from spin_core.runtime import progress
from spin_core.runtime.errors import BadInput, Cancelled, ChildCrash, Corrupt, SpinflowError, Unreachable

ERROR = "@error "
_EXCEPTION = re.compile(r"\b\w+(?:Error|Exception|Exit): \S.*")
_LAST_BYTES = 2**16
_KINDS = {kind.__name__: kind for kind in (BadInput, Corrupt, Cancelled, Unreachable, SpinflowError)}
_told: set[str] = set()  # what children said of this machine


class Output:
    """What a child of `module` prints: its events go out, all else to `log`, and what it says of its end becomes an error here."""

    def __init__(self, module: str, log: Path, name: str = "", part: int = 0, where: str = "") -> None:
        self._module, self._log, self._name, self._part = module, log, name, part
        self._where = where  # the node and devices, for people
        self._start, self._told, self._reported = size(log), "", False
        if name and not part:
            progress.emit(progress.Progress(name, 0, 1, "", where))

    def __enter__(self) -> Output:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._sink = self._log.open("a", encoding="utf-8")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._sink.close()

    def take(self, line: str) -> None:
        """One line."""
        event = progress.parse_line(line)
        if event:
            self._pass_on(event)
            self._reported = self._reported or bool(event.total)
            return
        if line.startswith(ERROR):
            self._told = self._told or line[len(ERROR) :]  # of several processes, the first: the others fail because of it
        self._sink.write(line)
        self._sink.flush()

    def end(self, status: int) -> None:
        """The child's exit status; raises as `run_job` does."""
        if status == 0:
            if self._name and not self._part and not self._reported:
                progress.emit(progress.Progress(self._name, 1, 1, "", self._where))
            return
        label = self._name or self._module
        if self._told:
            raise as_told(self._told, status)
        if status in (-signal.SIGTERM, 128 + signal.SIGTERM):
            raise Cancelled(f"{label} was cancelled")
        words = f"{label} ended with status {status}: {last_words(self._log, self._start)}"
        raise ChildCrash(words, exit_code=status, remedy=f"see {self._log}; run again to continue")

    def _pass_on(self, event: progress.Progress) -> None:
        """A child's event under its stage's name; what is said of the machine, which every child finds out, once."""
        if event.name != progress.MACHINE:
            note = " · ".join(filter(None, (event.note, self._where))) if event.total else event.note
            progress.emit(replace(event, name=self._name or event.name, part=self._part or event.part, note=note))
        elif event.note not in _told:
            _told.add(event.note)
            progress.emit(event)


def told(error: SpinflowError) -> str:
    """An error as one line, for `as_told` in another process."""
    return json.dumps({"kind": type(error).__name__, "text": " ".join(str(error).split())}, ensure_ascii=False)


def as_told(line: str, status: int) -> SpinflowError:
    """The error that another process told, of the kind that it had there: bad input is not retried, a crash below it is."""
    content = json.loads(line)
    if content["kind"] == ChildCrash.__name__:
        return ChildCrash(content["text"], exit_code=status)
    return _KINDS.get(content["kind"], SpinflowError)(content["text"])


def size(log: Path) -> int:
    """Where a log ends now, in bytes: what is written from here on is the next child's."""
    return log.stat().st_size if log.exists() else 0


def last_words(log: Path, start: int = 0) -> str:
    """What a child said before it ended: the last two different exceptions that its log names from `start` on, or its last line.

    The last one alone often says only that something failed above it.
    """
    try:
        with log.open("rb") as handle:
            handle.seek(max(start, size(log) - _LAST_BYTES))
            text = handle.read().decode(errors="replace")
    except FileNotFoundError:
        return "no output"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "WARNING" not in line]  # vLLM's advice names errors that did not happen
    told = [line for line in told if "see root cause above" not in line.lower()] or told  # nor one that only points
    errors = list(dict.fromkeys(match[0] for line in told if (match := _EXCEPTION.search(line))))
    return " after ".join(error[:300] for error in reversed(errors[-2:])) or (lines[-1][:300] if lines else "no output")
