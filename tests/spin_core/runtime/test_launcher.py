"""What an artifact's manifest says of how it came to be."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spin_core.runtime import devices, process
from spin_core.runtime.launcher import Launcher
from spin_core.store import Spec, Store


@dataclass(frozen=True)
class Stage:
    """One that needs devices, or none."""

    children: int
    label: str = "iter-0 · test"

    def spec(self) -> Spec:
        return Spec("test", 1, {"children": self.children})

    def run(self, out: Path, on: Launcher) -> dict[str, Any]:
        if self.children:
            on.spread("module", {}, "log", "test", most=self.children)
        else:
            on.job("module", {}, "log", "test")
        return {"rows": 3}


@pytest.fixture(autouse=True)
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices that are free after 0.1 s, and children that do nothing."""

    @contextmanager
    def hold(group: tuple[str, ...], *, purpose: str) -> Iterator[devices.Hold]:
        time.sleep(0.1 if group else 0.0)
        yield devices.Hold()

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "none-0,none-1")
    monkeypatch.setattr(devices, "hold", hold)
    monkeypatch.setattr(devices, "environment", lambda group: {})
    monkeypatch.setattr(process, "run_job", lambda *args, **kwargs: None)


def test_waiting_for_devices_is_written_down(tmp_path: Path) -> None:
    """Two children that wait side by side waited once."""
    facts = Launcher(Store(tmp_path), "c").build(Stage(2)).facts
    assert facts["rows"] == 3
    assert facts["campaign"] == "c"
    assert 0.1 <= facts["waited"] < 0.19


def test_without_devices_and_campaign_nothing_is(tmp_path: Path) -> None:
    on = Launcher(Store(tmp_path))
    assert on.build(Stage(0)).facts.keys() == {"rows", "seconds"}
    assert on._waits == []
