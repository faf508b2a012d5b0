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

    groups: tuple[tuple[str, ...], ...]
    label: str = "iter-0 · test"

    def spec(self) -> Spec:
        return Spec("test", 1, {"groups": len(self.groups)})

    def run(self, out: Path, on: Launcher) -> dict[str, Any]:
        on.jobs("module", [{}] * len(self.groups), "log", "test", groups=self.groups)  # type: ignore[arg-type]
        return {"rows": 3}


@pytest.fixture(autouse=True)
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices that are free after 0.1 s, and children that do nothing."""

    @contextmanager
    def hold(group: tuple[str, ...], *, purpose: str) -> Iterator[devices.Hold]:
        time.sleep(0.1 if group else 0.0)
        yield devices.Hold()

    monkeypatch.setattr(devices, "hold", hold)
    monkeypatch.setattr(devices, "environment", lambda group: {})
    monkeypatch.setattr(process, "run_job", lambda *args, **kwargs: None)


def test_waiting_for_devices_is_written_down(tmp_path: Path) -> None:
    """Two children that wait side by side waited once."""
    facts = Launcher(Store(tmp_path), "c").build(Stage((("0",), ("1",)))).facts
    assert facts["rows"] == 3
    assert facts["campaign"] == "c"
    assert 0.1 <= facts["waited"] < 0.19


def test_without_devices_and_campaign_nothing_is(tmp_path: Path) -> None:
    on = Launcher(Store(tmp_path))
    assert on.build(Stage(((),))).facts.keys() == {"rows", "seconds"}
    assert on._waits == []
