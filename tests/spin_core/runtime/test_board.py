"""How far a run is, as another process reads it."""

import time
from pathlib import Path

import pytest

from spin_core.runtime.board import Board, read_board
from spin_core.runtime.progress import Progress


def test_parts_add_up_and_a_stage_that_comes_again_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "time", lambda: now)
    board = Board(tmp_path)
    board.note(Progress("sampling", 0, 10, "rows", "", 0))
    now = 104.0
    assert board.note(Progress("sampling", 4, 10, "rows", "90 tokens/s", 1)) == 4
    board.note(Progress("scoring", 1, 1))
    board.note(Progress("data", 0, 0, note="2 rows were left out"))
    board.write()
    shown = read_board(tmp_path)
    sampling = shown.entries[0]
    assert (sampling.name, sampling.done, sampling.note, sampling.left_s) == ("sampling", 4, "90 tokens/s", 6.0)
    assert shown.entries[1].left_s is None
    assert (shown.notes, shown.ended) == (["data: 2 rows were left out"], None)
    for done in (6, 10):
        board.note(Progress("sampling", done, 10, "rows", "", 0))
    assert board.note(Progress("sampling", 0, 10, "rows", "", 0)) == 0
    board.end("it was cancelled")
    shown = read_board(tmp_path)
    assert [entry.name for entry in shown.entries] == ["scoring", "sampling"]
    assert shown.ended == "it was cancelled"


def test_a_run_without_one_says_nothing(tmp_path: Path) -> None:
    assert read_board(tmp_path).entries == []
    (tmp_path / "progress.json").write_text('{"entries": [{"name')
    assert read_board(tmp_path).entries == []
