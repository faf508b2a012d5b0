"""What a run shows of its children: their own lines, without floods; keys that Prefect takes."""

import logging
from pathlib import Path
from typing import Any

import pytest

from flows import watch
from spin_core.runtime.progress import Progress


class Recorder:
    """A run's logger and the artifacts' API."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.shown: list[tuple[str, float, str]] = []

    def info(self, text: str, *values: Any) -> None:
        self.lines.append(text % values if values else text)

    debug = info

    def show(self, name: str, percent: float, text: str) -> None:
        self.shown.append((name, percent, text))


Seen = tuple[watch._Watch, Recorder]


@pytest.fixture
def seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Seen:
    recorder = Recorder()
    monkeypatch.setattr(watch, "get_run_logger", lambda: recorder)
    monkeypatch.setattr(watch, "_LOOK_EVERY_S", 3600.0)  # the tests look by hand
    found = watch._Watch(tmp_path, "c")
    monkeypatch.setattr(found, "_show", recorder.show)
    return found, recorder


def test_a_flood_is_cut_and_a_bar_shows_its_end(seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training log of a million redrawn bars would fill the server's database."""
    found, recorder = seen
    monkeypatch.setenv("HF_TOKEN", "hf_secret_value")
    log = tmp_path / "engine.log"
    log.write_text("loading:  3%|█  \rloading: 100%|████\n\x1b[32mready\x1b[0m with hf_secret_value\nhalf a li")
    found._tell_lines()
    assert recorder.lines == ["engine | loading: 100%|████", "engine | ready with ***"]
    with log.open("a") as handle:
        handle.write("ne\n" + "".join(f"line {n}\n" for n in range(100)))
    recorder.lines.clear()
    found._tell_lines()
    assert recorder.lines[0] == "engine | line 90"
    assert len(recorder.lines) == 11
    assert "91 more lines in" in recorder.lines[-1]


def test_progress_of_shards_adds_up_and_starts_anew(seen: Seen) -> None:
    found, recorder = seen
    for part, done in ((0, 8), (1, 4), (1, 6)):
        found.note(Progress("iter-0 · sampling train", done, 32, "rows", "9 tokens/s", part))
    found._tell_progress()
    found._tell_progress()
    assert recorder.shown == [("iter-0 · sampling train", 43.75, "iter-0 · sampling train: 14/32 rows 9 tokens/s")]
    for part, done in ((1, 24), (0, 2)):
        found.note(Progress("iter-0 · sampling train", done, 32, "rows", "", part))
        found._tell_progress()
    assert [percent for _, percent, _ in recorder.shown[1:]] == [100.0, 6.25]


def test_what_has_no_length_is_only_said(seen: Seen) -> None:
    """Every line, once: not "0/0", and none is lost to the next of the same name."""
    found, recorder = seen
    for note in ("80,000 rows read", "3 rows left out"):
        found.note(Progress("iter-0 · reformat", 0, 0, note=note))
    found._tell_progress()
    found._tell_progress()
    assert recorder.lines == ["iter-0 · reformat: 80,000 rows read", "iter-0 · reformat: 3 rows left out"]
    assert recorder.shown == []


def test_a_full_disk_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Else the line that says what to do stands between dozens of lines of logging's own complaint."""
    monkeypatch.setattr(logging, "raiseExceptions", True)
    handler = watch._FlowLog("/dev/full")
    handler.handle(logging.LogRecord("flow", logging.INFO, __file__, 1, "text", (), None))
    assert capfd.readouterr().err == ""


def test_artifact_keys_are_as_prefect_asks() -> None:
    assert watch.artifact_key("my-campaign", "iter-0 · sampling train") == "my-campaign-iter-0-sampling-train"
    assert watch.artifact_key("c", "../../etc/passwd") == "c-etc-passwd"
