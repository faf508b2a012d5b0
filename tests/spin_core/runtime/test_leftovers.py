"""No process of a killed run stays, and none of another run is touched."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from spin_core.runtime import leftovers

ROOT = Path(__file__).parents[3]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


def test_the_guard_ends_what_a_killed_run_leaves(tmp_path: Path) -> None:
    """Prefect's ephemeral server is not our child to mark with PDEATHSIG; it must not outlive a killed run either."""
    code = (
        "import subprocess, time; from spin_core.runtime.leftovers import guard; guard()\n"
        "c = subprocess.Popen(['sleep', '60'], start_new_session=True); print(c.pid, flush=True); time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert run.stdout is not None
    child = int(run.stdout.readline())
    assert _runs(child)
    run.kill()
    run.wait()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _runs(child):
        time.sleep(0.05)
    assert not _runs(child)


def test_a_run_is_guarded_once(tmp_path: Path) -> None:
    """The command line guards, and so does the session that a worker's flow run opens: the second call must not orphan the first's mark."""
    code = (
        "import os; from spin_core.runtime.leftovers import guard; guard(); first = os.environ['SPINFLOW_RUN']; guard()\n"
        "print(os.environ['SPINFLOW_RUN'] == first)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "True\n", done.stderr


def test_what_a_killed_run_left_is_known(tmp_path: Path) -> None:
    """Its restart waits for that memory instead of failing; a run that is at work is nobody's leftover."""
    code = (
        "import subprocess, time; from spin_core.runtime import leftovers\n"
        "real = subprocess.Popen\n"
        "subprocess.Popen = lambda *a, **k: None; leftovers.guard(); subprocess.Popen = real\n"  # whose watcher was killed, too
        "c = subprocess.Popen(['sleep', '60'], start_new_session=True); print(c.pid, flush=True); time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert run.stdout is not None
    child = int(run.stdout.readline())
    try:
        assert child not in leftovers.left_behind()
        run.kill()
        run.wait()
        assert child in leftovers.left_behind()
        assert leftovers.ending(time.monotonic())
        assert not leftovers.ending(time.monotonic() - 1000)  # nobody waits for ever
    finally:
        os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while child in leftovers.left_behind():
        assert time.monotonic() < deadline
        time.sleep(0.05)
