"""Child processes: streamed logs, typed crashes, and an end together with the parent.

A stage's heavy work runs as `python -m MODULE JOB.json`, so the flow process never loads torch. The child's output
goes to a log file; lines with the progress prefix become events. A child that fails with a SpinflowError prints one line,
`@error {"kind": …, "text": …}`, and its parent raises the same kind of error.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from spin_core.runtime import environment, leftovers, progress
from spin_core.runtime.errors import BadInput, Cancelled, ChildCrash, Corrupt, SpinflowError

_PR_SET_PDEATHSIG = 1
_MARK = "SPINFLOW_CHILD"
_ERROR = "@error "
_EXCEPTION = re.compile(r"\b\w+(?:Error|Exception|Exit): \S.*")
_LAST_BYTES = 2**16
_KINDS = {kind.__name__: kind for kind in (BadInput, Corrupt, Cancelled, SpinflowError)}
_OPEN_FILES = 2**16
_live: dict[subprocess.Popen[str], str] = {}  # each with its mark in the environment
_told: set[str] = set()  # what children said of this machine
_lock = threading.Lock()


def die_with_parent() -> None:
    """Has Linux kill this process when the thread that started it ends, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(
    command: Sequence[str],
    log: Path,
    env: Mapping[str, str] | None = None,
    *,
    pipe: bool = False,
    talk: bool = False,
    fds: Sequence[int] = (),
) -> subprocess.Popen[str]:
    """Starts a child that dies with this process's starting thread and is ended by `end_all`.

    With `pipe`, stdout and stderr can be read line by line; otherwise they go to `log`. With `talk`, it can be written to and its
    stdout be read, and stderr goes to `log`. The child inherits `fds` (see `devices.Hold`).
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    mark = uuid4().hex
    with log.open("a") as handle:
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE if talk else subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe or talk else handle,
            stderr=handle if talk else subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            env=environment.of_child({**(env or {}), _MARK: mark}),
            preexec_fn=die_with_parent,
            pass_fds=fds,
        )
    with _lock:
        _live[child] = f"{_MARK}={mark}"
    return child


def allow_open_files() -> None:
    """Raises the usual limit of 1,024, where the system allows it: every engine has about two thousand requests open."""
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY not in {now, most}:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(now, min(most, _OPEN_FILES)), most))


def run_job(
    module: str,
    job: Mapping[str, Any],
    log: Path,
    *,
    launcher: Sequence[str] = (),
    name: str = "",
    part: int = 0,
    env: Mapping[str, str] | None = None,
    fds: Sequence[int] = (),
) -> None:
    """Runs `python [launcher] -m module JOB.json` to its end.

    With `name`, the child's progress events go out under it, from 0 of 1 if it sends none; `part` is which it is of several
    children that share the name. `env` and `fds` as in `spawn`.

    Raises the child's own kind of SpinflowError where it told one, Cancelled if it was ended by SIGTERM, ChildCrash otherwise.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False, encoding="utf-8") as handle:
        json.dump(job, handle)
    try:
        if name and not part:
            progress.emit(progress.Progress(name, 0, 1))
        start = size(log)
        child = spawn([sys.executable, *launcher, "-m", module, handle.name], log, env, pipe=True, fds=fds)
        told: str | None = None
        reported = False
        assert child.stdout is not None
        with log.open("a", encoding="utf-8") as sink:
            for line in child.stdout:
                event = progress.parse_line(line)
                if event:
                    _pass_on(event, name, part)
                    reported = reported or bool(event.total)
                    continue
                if line.startswith(_ERROR):
                    told = told or line[len(_ERROR) :]  # of several processes, the first: the others fail because of it
                sink.write(line)
                sink.flush()
        status = child.wait()
        forget(child)
    finally:
        os.unlink(handle.name)
    if status == 0:
        if name and not part and not reported:
            progress.emit(progress.Progress(name, 1, 1))
        return
    label = name or module
    if told:
        raise _as_told(told, status)
    if status in (-signal.SIGTERM, 128 + signal.SIGTERM):
        raise Cancelled(f"{label} was cancelled")
    words = f"{label} ended with status {status}: {last_words(log, start)}"
    raise ChildCrash(words, exit_code=status, remedy=f"see {log}; run again to continue")


def _pass_on(event: progress.Progress, name: str, part: int) -> None:
    """A child's event under its stage's name; what is said of the machine, which every child finds out, once."""
    if event.name != progress.MACHINE:
        progress.emit(replace(event, name=name or event.name, part=part or event.part))
    elif event.note not in _told:
        _told.add(event.note)
        progress.emit(event)


def job_main(work: Callable[[dict[str, Any]], None]) -> None:
    """The `__main__` of a job module: reads the job, runs `work`, turns a SpinflowError into one line that its parent understands."""
    try:
        work(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except SpinflowError as error:
        _tell(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _tell(SpinflowError(f"disk full ({error})", remedy="free some space and run again"))


def _tell(error: SpinflowError) -> NoReturn:
    content = {"kind": type(error).__name__, "text": " ".join(str(error).split())}
    print(f"{_ERROR}{json.dumps(content, ensure_ascii=False)}", flush=True)
    raise SystemExit(2 if isinstance(error, BadInput) else 1)


def _as_told(line: str, status: int) -> SpinflowError:
    """The error that a child told, of the kind that it had there: bad input is not retried, a crash below it is."""
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
    errors = list(dict.fromkeys(match[0] for line in told if (match := _EXCEPTION.search(line))))
    return " after ".join(error[:300] for error in reversed(errors[-2:])) or (lines[-1][:300] if lines else "no output")


def descendants(pid: int) -> list[int]:
    """All living children of a process, theirs included."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        threads = [p for p in Path(f"/proc/{pid}/task").iterdir() if p.name != str(pid)]
        for thread in threads:
            children += (thread / "children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [pid for child in map(int, children) for pid in (child, *descendants(child))]


def peak_rss(pid: int | str = "self") -> int:
    """The most bytes of memory that a process has held so far (VmHWM); raises OSError once it is gone, 0 for a zombie.

    `getrusage` would count the parent's own pages, which a fork has until it execs.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def end(*children: subprocess.Popen[str], grace_s: float = 10.0) -> None:
    """Ends children and their whole process trees together: SIGTERM, then SIGKILL for what is left after `grace_s`.

    Their descendants are known by a mark in the environment: those of a child that was killed have init as their parent.
    """
    with _lock:
        marks = [_live[child] for child in children if child in _live]
    for child in children:
        if child.poll() is None:
            child.terminate()
    deadline = time.monotonic() + grace_s
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        forget(child)
    for mark in marks:
        leftovers.kill_marked(mark)


def live() -> list[subprocess.Popen[str]]:
    """The children that have not ended."""
    with _lock:
        return list(_live)


def forget(child: subprocess.Popen[str]) -> None:
    """Takes an ended child off the list of those that `end_all` ends."""
    with _lock:
        _live.pop(child, None)


def end_all() -> None:
    """Ends every live child; called on the way out of a run."""
    end(*live(), grace_s=3.0)
