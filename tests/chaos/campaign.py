"""A tiny campaign that is broken again and again, and the same command that always continues it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from spin_core.contracts.rows import TEST_FILE, TRAIN_FILE
from spin_core.contracts.tables import read_rows
from spin_core.runtime.process import descendants

ROOT = Path(__file__).parents[2]
RECIPE = """
name: tiny
model: {{name: {model}}}
data: {{name: demo, subset: {rows}, test_size: 6, max_prompt_tokens: 256}}
generation: {{engine: {engine}, max_new_tokens: 24, shard_rows: 6}}
training: {{epochs: 1, pairs_per_step: 6, learning_rate: 1.0e-3, save_steps: 1}}
evaluation: {{samples: 1, greedy: false}}
stop: {{on_worse: go_on}}
iterations: {iterations}
"""
DAY_S = 24 * 3600.0


class Campaign:
    """A home, a recipe, the run that is under way, and what must stay true however it is broken."""

    environment: Mapping[str, str] = os.environ  # of its runs

    def __init__(self, folder: Path, model: Path, engine: str, *, rows: int, iterations: int, say: Callable[[str], None]) -> None:
        self.folder, self.home, self.say = folder, folder / "home", say
        self.home.mkdir(parents=True, exist_ok=True)
        self.log = folder / "out.log"
        self.iterations = iterations
        (folder / "tiny.yaml").write_text(RECIPE.format(model=model, engine=engine, rows=rows, iterations=[{}] * iterations))
        self.mark = uuid4().hex
        self.run: subprocess.Popen[str] | None = None
        self.runs = 0
        self.killed = False  # the flow itself, so it could not say goodbye
        self.done: dict[Path, float] = {}  # when each artifact was committed
        self.spoilt: set[Path] = set()  # artifacts that a fault corrupted

    def start(self, prefix: tuple[str, ...] = ()) -> None:
        """The same command, every time."""
        self.runs += 1
        self.killed = False
        command = [*prefix, sys.executable, "-m", "flows.cli", "run", "tiny.yaml", "--home", self.place]
        env = {"PYTHONPATH": str(ROOT), "PREFECT_HOME": str(self.folder / "prefect"), "CHAOS": self.mark}
        with self.log.open("w") as log:
            self.run = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, text=True, env={**self.environment, **env})

    @property
    def place(self) -> str:
        """Its home, as runs are told."""
        return str(self.home)

    def running(self) -> bool:
        """Whether the run is under way; looks after the artifacts meanwhile."""
        self.watch()
        return self.run is not None and self.run.poll() is None

    def watch(self) -> None:
        """Nothing that was finished is done twice, or goes away, unless a fault spoilt it."""
        now = {}
        for manifest in self.home.glob("artifacts/*/*/MANIFEST.json"):
            try:
                now[manifest.parent] = manifest.stat().st_mtime
            except FileNotFoundError:  # set aside this very moment
                continue
        for path, when in self.done.items():
            assert path in self.spoilt or now.get(path) == when, f"{path} was finished, and done again"
        self.done = now

    def pids(self, *words: str) -> list[int]:
        """The run's processes whose command line has all the words."""
        assert self.run is not None
        return [pid for pid in descendants(self.run.pid) if all(word in command_line(pid) for word in words)]

    def left(self) -> list[int]:
        """Every process that came out of the campaign's runs, whoever its parent is now: by its environment or its working directory."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    marked = f"CHAOS={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0")
                    if marked or (entry / "cwd").readlink() == self.folder:  # a process that renames itself may lose its environment
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found

    def end(self, timeout_s: float = 600.0, orphans_s: float = 15.0) -> int:
        """Waits for the run's end: no orphans, no traceback, and one line that says what was wrong."""
        assert self.run is not None
        deadline = time.monotonic() + timeout_s
        while self.running():
            assert time.monotonic() < deadline, f"the run hangs:\n{self.output()}"
            time.sleep(0.2)
        self.watch()
        status = self.run.returncode
        deadline = time.monotonic() + orphans_s
        while left := [pid for pid in self.left() if command_line(pid)]:
            assert time.monotonic() < deadline, f"orphans: {[command_line(pid) for pid in left]}"
            time.sleep(0.1)
        self.say(f"run {self.runs} ended with {status}: {([line for line in self.output().splitlines() if line] or [''])[-1][:200]}")
        if not self.killed:
            assert "Traceback" not in self.output(), self.output()
            assert status == 0 or "error: " in self.output(), self.output()
        self.run = None
        for litter in self.home.glob(".staging/*"):  # a day later
            os.utime(litter, (time.time() - DAY_S - 60,) * 2)
        return status

    def output(self) -> str:
        """What the last run printed."""
        return self.log.read_text(errors="replace")

    def check(self) -> None:
        """Every row exactly once in the pairs of every iteration; no litter."""
        encoded = next(self.home.glob("artifacts/encoded/*"))
        wanted = {split: sorted(r["row_id"] for r in read_rows(encoded / f"{split}.parquet", ["row_id"])) for split in ("train", "test")}
        for iteration in range(self.iterations):
            pairs = self.home / "campaigns" / "tiny" / f"iter-{iteration}" / "pairs"
            found: dict[int, list[str]] = {}
            for row in read_rows(pairs / TRAIN_FILE, ["row_id", "iteration"]):
                found.setdefault(row["iteration"], []).append(row["row_id"])
            assert set(found) == set(range(max(0, iteration - 1), iteration + 1))
            for rows in found.values():
                assert sorted(rows) == wanted["train"]
            assert sorted(r["row_id"] for r in read_rows(pairs / TEST_FILE, ["row_id"])) == wanted["test"]
        assert list(self.home.glob(".staging/*")) == []
        assert not (self.home / "work").exists() or list((self.home / "work").iterdir()) == [], "resume state of finished work stays"


def command_line(pid: int) -> str:
    """Empty for a process that is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[None]:
    """A file system of its own for the home, so that it can be full. Skips where mounting is not allowed."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
