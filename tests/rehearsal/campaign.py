"""A whole campaign on a machine with GPUs that are not there: what counts, locks, waits and launches by device, with real processes."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from spin_core.runtime import devices
from tests.chaos.campaign import Campaign, command_line
from tests.rehearsal.machine import make_machine

DEADLINE_S = 1800.0
Place = tuple[str, str, str]  # a child's room, the GPUs that it sees, its rank in a training


@dataclass(frozen=True)
class Kill:
    """SIGKILL once a child of `room` is at work and `models` models are finished: for the child, or for the flow."""

    room: str
    who: str  # child | flow
    models: int = 0


class Rehearsal(Campaign):
    """A campaign of two iterations on a machine with `count` GPUs, that is broken at given moments and continued."""

    def __init__(self, folder: Path, model: Path, count: int, iterations: int = 2) -> None:
        super().__init__(folder, model, "transformers", rows=14, iterations=iterations, say=lambda text: None)
        self.environment = make_machine(folder / "bin", count)
        self.seen: set[Place] = set()
        self.told = ""  # by all runs

    def play(self, kills: list[Kill]) -> None:
        """To the end; each kill happens in turn."""
        left = list(kills)
        deadline = time.monotonic() + DEADLINE_S
        self.start()
        while True:
            while self.running():
                assert time.monotonic() < deadline, f"the run hangs:\n{self.output()}"
                self.look()
                if left and self.happens(left[0]):
                    left.pop(0)
                time.sleep(0.02)
            status = self.end()
            self.told += self.output()
            if status == 0:
                break
            assert kills, self.output()
            self.start()
        assert not left, f"never came to happen: {left}\n{self.told}"
        self.check()

    def look(self) -> None:
        """Notes where every child works."""
        for pid in self.pids("-m spin_core."):
            command = command_line(pid)
            if "accelerate" in command:
                continue  # the launcher
            try:
                content = Path(f"/proc/{pid}/environ").read_bytes()
            except OSError:
                continue
            if not content:  # it is about to become that child, or has just ended
                continue
            environ = {name: value for name, _, value in (entry.decode().partition("=") for entry in content.split(b"\0"))}
            room = command.partition("-m spin_core.")[2].partition(".")[0]
            self.seen.add((room, environ.get("CUDA_VISIBLE_DEVICES", ""), environ.get("RANK", "")))

    def happens(self, kill: Kill) -> bool:
        """Whether the moment had come."""
        found = [pid for pid in self.pids(f"-m spin_core.{kill.room}.") if "accelerate" not in command_line(pid)]
        if not found or len(list(self.home.glob("artifacts/model/*/MANIFEST.json"))) < kill.models:
            return False
        assert self.run is not None
        self.killed = kill.who == "flow"
        try:
            os.kill(self.run.pid if self.killed else found[-1], signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def places(self, room: str) -> set[tuple[str, str]]:
        return {(gpus, rank) for name, gpus, rank in self.seen if name == room}


def check_end(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    """The report is there, the missing driver was told once a run, and nobody holds a GPU any more."""
    assert "report: " in rehearsal.output()
    rows = [line.split()[1] for line in rehearsal.output().splitlines() if line.startswith("│ θ_")]
    assert rows[: rehearsal.iterations + 1] == ["θ_0", "θ_1", "θ_2"][: rehearsal.iterations + 1]
    assert rehearsal.output().count("sees none of the GPUs") <= 1
    assert "sees none of the GPUs, so everything is computed on the CPU" in rehearsal.told
    monkeypatch.setenv("PATH", rehearsal.environment["PATH"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = devices.visible()
    with devices.hold(found, lambda: True):
        pass
    for device in found:
        (devices.LOCKS / device.uuid).unlink()
