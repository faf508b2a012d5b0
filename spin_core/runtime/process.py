"""Child processes: streamed logs, typed crashes, and an end together with the parent.

A stage's heavy work runs as `python -m MODULE JOB.json`, so the flow process never loads torch. What the
child prints is read by `output`.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from spin_core.runtime import environment, leftovers
from spin_core.runtime.errors import BadInput, SpinflowError
from spin_core.runtime.output import ERROR, Output, told

_PR_SET_PDEATHSIG = 1
_MARK = "SPINFLOW_CHILD"
_OPEN_FILES = 2**16
_live: dict[subprocess.Popen[str], str] = {}  # each with its mark in the environment
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
    output = Output(module, log, name, part)
    with job_file(job) as file:
        child = spawn([sys.executable, *launcher, "-m", module, file], log, env, pipe=True, fds=fds)
        assert child.stdout is not None
        with output:
            for line in child.stdout:
                output.take(line)
        status = child.wait()
        forget(child)
    output.end(status)


@contextmanager
def job_file(job: Mapping[str, Any]) -> Iterator[str]:
    """A file with a job's content for a child to read, until the block ends."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False, encoding="utf-8") as handle:
        json.dump(job, handle)
    try:
        yield handle.name
    finally:
        os.unlink(handle.name)


def job_main(work: Callable[[dict[str, Any]], None]) -> None:
    """The `__main__` of a job module: reads the job, runs `work`, turns a SpinflowError into one line that its parent understands."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        work(job)
    except SpinflowError as error:
        _tell(error)
    except Exception as error:
        if not _is_full(error):
            raise
        _tell(SpinflowError(f"disk full while writing {job.get('out', 'files')} ({error})", remedy="free some space and run again"))


def _is_full(error: Exception) -> bool:
    """Whether a disk without room is behind an error: libraries in Rust have the system's words and no number, torch has neither."""
    words = (os.strerror(errno.ENOSPC), "unexpected pos", "PytorchStreamWriter failed")  # not its reader's, of a damaged file
    return getattr(error, "errno", None) == errno.ENOSPC or any(word in str(error) for word in words)


def _tell(error: SpinflowError) -> NoReturn:
    print(f"{ERROR}{told(error)}", flush=True)
    raise SystemExit(2 if isinstance(error, BadInput) else 1)


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


def leave(text: str, status: int) -> NoReturn:
    """Ends this process at once, with one line: artifacts are whole or absent, so there is nothing to unwind."""
    end_all()
    if sys.stdout.isatty():
        print("\x1b[?25h", end="", flush=True)  # the cursor, which bars hide
    print(text, file=sys.__stderr__, flush=True)
    os._exit(status)
