"""Children: typed ends, no orphans."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spin_core.runtime import output, process
from spin_core.runtime.errors import BadInput, Cancelled, ChildCrash, Corrupt, SpinflowError

ROOT = Path(__file__).parents[3]
JOB = """
import errno, os, signal, sys
from spin_core.runtime.errors import BadInput, ChildCrash, Corrupt, SpinflowError
from spin_core.runtime.process import job_main
def work(job):
    print("working")
    if job["end"] == "bad":
        raise BadInput("the file is empty", remedy="fill it")
    if job["end"] == "damaged":
        raise Corrupt("the manifest\\nlies", remedy="run again")
    if job["end"] == "alarm":
        raise SpinflowError("loss at step 0 is 0.9 → not ln 2")
    if job["end"] == "below":
        raise ChildCrash("its engine died", exit_code=-9)
    if job["end"] == "full":
        raise OSError(errno.ENOSPC, "No space left")
    if job["end"] == "full, in Rust":
        raise ValueError("Error while serializing: I/O error: No space left on device (os error 28)")
    if job["end"] == "full, in torch":
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
    if job["end"] == "damaged, in torch":
        raise RuntimeError("[enforce fail at inline_container.cc:300] . PytorchStreamReader failed reading zip archive")
    if job["end"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job["end"] == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    if job["end"] == "bug":
        raise RuntimeError("boom")
job_main(work)
"""


@pytest.mark.parametrize(
    ("end", "error", "says"),
    [
        ("bad", BadInput, "^the file is empty; fill it$"),
        ("damaged", Corrupt, "^the manifest lies; run again$"),
        ("alarm", SpinflowError, "^loss at step 0 is 0.9 → not ln 2$"),
        ("below", ChildCrash, "^its engine died$"),
        ("full", SpinflowError, "disk full while writing files .*No space left.*; free some space and run again"),
        ("full, in Rust", SpinflowError, "disk full .*; free some space and run again"),
        ("full, in torch", SpinflowError, "disk full .*; free some space and run again"),
        ("damaged, in torch", ChildCrash, "PytorchStreamReader failed"),
        ("kill", ChildCrash, "-9"),
        ("term", Cancelled, "was cancelled"),
        ("bug", ChildCrash, "boom"),
    ],
)
def test_a_child_ends_as_a_typed_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, error: type[Exception], says: str
) -> None:
    """The retry policy looks at the type: a crash is retried, bad input and cancellation are not; so does the exit status."""
    (tmp_path / "spin_test_job.py").write_text(JOB)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    with pytest.raises(error, match=says) as caught:
        process.run_job("spin_test_job", {"end": end}, tmp_path / "job.log")
    assert type(caught.value) is error
    assert "working" in (tmp_path / "job.log").read_text()


def test_last_words_name_the_root_cause(tmp_path: Path) -> None:
    """vLLM's last exception only says that its engine core failed; the reason stands above, and an older run's further above."""
    log = tmp_path / "log"
    assert output.last_words(log) == "no output"
    log.write_text("OSError: from yesterday\n")
    start = output.size(log)
    assert output.last_words(log, start) == "no output"
    with log.open("a") as handle:
        handle.write("WARNING: this can cause errors like `OSError: too many files`\n")
        handle.write("(core) ValueError: no room\n" * 2 + "RuntimeError: no engine\n  warnings.warn(leaked)\n")
    assert output.last_words(log, start) == "RuntimeError: no engine after ValueError: no room"
    with log.open("a") as handle:
        handle.write("RuntimeError: Engine core initialization failed. See root cause above.\n")
    assert output.last_words(log, start) == "RuntimeError: no engine after ValueError: no room"
    log.write_text("working\nKilled\n\n")
    assert output.last_words(log) == "Killed"


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """A killed run must not leave an engine that holds the memory."""
    code = (
        "import sys; from pathlib import Path; from spin_core.runtime import process\n"
        f"c = process.spawn(['sleep', '60'], Path({str(tmp_path / 'log')!r})); print(c.pid, flush=True); c.wait()"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and _runs(child):
        time.sleep(0.05)
    assert not _runs(child)


def test_end_takes_the_grandchildren(tmp_path: Path) -> None:
    child = process.spawn(["sh", "-c", "trap '' TERM; sleep 60 & wait; sleep 60"], tmp_path / "log")
    deadline = time.monotonic() + 5
    while not process.descendants(child.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    grandchildren = process.descendants(child.pid)
    assert grandchildren
    process.end(child, grace_s=0.5)
    time.sleep(0.1)
    assert child.returncode == -signal.SIGKILL
    assert not any(_runs(pid) for pid in grandchildren)


def test_end_takes_what_a_killed_child_left(tmp_path: Path) -> None:
    """vLLM's engine core outlives a killed server and holds the memory that the next one needs."""
    child = process.spawn(["sh", "-c", "sleep 60 & echo $!; wait"], tmp_path / "log")
    deadline = time.monotonic() + 5
    while not (tmp_path / "log").read_text().strip() and time.monotonic() < deadline:
        time.sleep(0.02)
    orphan = int((tmp_path / "log").read_text())
    child.kill()
    child.wait()
    assert _runs(orphan)
    process.end(child)
    time.sleep(0.1)
    assert not _runs(orphan)


def test_end_takes_what_renamed_itself(tmp_path: Path) -> None:
    """vLLM's engine core renames itself, which wipes its environment, and so our mark: it would be left with the memory."""
    pytest.importorskip("setproctitle")
    rename = "import os, time, setproctitle; setproctitle.setproctitle('VLLM::EngineCore'); print(os.getpid(), flush=True); time.sleep(60)"
    child = process.spawn(["sh", "-c", f'{sys.executable} -c "{rename}" & wait'], tmp_path / "log")
    deadline = time.monotonic() + 10
    while not (tmp_path / "log").read_text().strip() and time.monotonic() < deadline:
        time.sleep(0.02)
    orphan = int((tmp_path / "log").read_text())
    assert Path(f"/proc/{orphan}/cmdline").read_text().startswith("VLLM::EngineCore")
    child.kill()
    child.wait()
    process.end(child)
    time.sleep(0.1)
    assert not _runs(orphan)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False
    finally:
        assert os.getpid() != pid


def test_a_run_may_open_what_its_engines_need() -> None:
    """Eight engines have 16,000 requests open, each a file; a shell's usual limit is 1,024."""
    code = "import resource as r; from spin_core.runtime import process; _, most = r.getrlimit(r.RLIMIT_NOFILE); "
    code += "r.setrlimit(r.RLIMIT_NOFILE, (1024, most)); process.allow_open_files(); now, _ = r.getrlimit(r.RLIMIT_NOFILE); "
    code += "print(now == min(most, 2**16))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
