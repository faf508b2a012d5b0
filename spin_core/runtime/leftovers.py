"""What a run leaves behind when it is killed: ended by a watcher, and known to whoever waits for the memory.

Every process of a run has a mark in its environment that names the run's own process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

from spin_core.runtime import environment

_RUN = "SPINFLOW_RUN"
_PF_EXITING = 0x4  # of the flags in proc(5), field 9
_ENDING_S = 120.0  # the kernel takes up to a minute to free what a process of many GB held, a driver sometimes more
_guarded = False


def guard() -> None:
    """Starts a watcher that ends whatever this run leaves behind, however it ends.

    PDEATHSIG covers the children that we start, but not theirs, nor Prefect's ephemeral server. All inherit a mark in
    their environment; the watcher sees the run's end as the closing of a pipe, and kills what still carries the mark.
    A second call changes nothing: a run that the command line guards opens a session, which guards deployed runs.
    """
    global _guarded
    if _guarded:
        return
    _guarded = True
    run = f"{os.getpid()}-{_started(os.getpid())}-{uuid4().hex}"
    os.environ[_RUN] = run
    mark = f"{_RUN}={run}"
    read, write = os.pipe()
    os.set_inheritable(write, False)
    code = "import sys; from spin_core.runtime.leftovers import kill_marked; sys.stdin.read(); kill_marked(sys.argv[1])"
    with os.fdopen(read) as end:
        command = [sys.executable, "-c", code, mark]
        env = {name: value for name, value in environment.of_child().items() if name != _RUN}
        subprocess.Popen(command, stdin=end, start_new_session=True, stderr=subprocess.DEVNULL, env=env)


def kill_marked(mark: str) -> None:
    """SIGKILLs every process of this user whose environment has `mark`, but for this one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
            except OSError:
                continue


def ending(deadline: float) -> bool:
    """Whether memory is worth waiting for past `deadline` (of time.monotonic): for a while, as long as something is left behind."""
    return time.monotonic() < deadline + _ENDING_S and bool(left_behind())


def left_behind() -> list[int]:
    """Processes that will soon give memory back: those of runs that were killed, and any of this user's that is just ending.

    A process that ends has lost its environment, and so our mark, before its pages are free.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            if fields[0] not in {"Z", "X"} and int(fields[6]) & _PF_EXITING and entry.stat().st_uid == os.getuid():
                found.append(int(entry.name))
                continue
            marks = [part for part in (entry / "environ").read_bytes().decode(errors="replace").split("\0") if part.startswith(f"{_RUN}=")]
        except (OSError, IndexError):  # it has ended, or belongs to somebody else
            continue
        if marks and _has_ended(marks[0].removeprefix(f"{_RUN}=")):
            found.append(int(entry.name))
    return found


def _has_ended(run: str) -> bool:
    """Whether the process that called `guard` is gone; its pid alone may be another's by now."""
    pid, _, rest = run.partition("-")
    try:
        return _started(int(pid)) != rest.partition("-")[0]
    except (OSError, ValueError, IndexError):
        return True


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot (proc(5), field 22)."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
