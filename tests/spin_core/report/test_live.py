"""The console of a run: bars in a terminal, lines where there is none."""

import io
import threading

import pytest
from rich.console import Console

from spin_core.report import live
from spin_core.runtime.progress import Progress, emit, tell


def lines_of(*events: Progress) -> list[str]:
    console = Console(file=io.StringIO(), width=40)
    with live.bars(console):
        for event in events:
            emit(event)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_no_line_is_printed_twice_and_none_says_nothing() -> None:
    """What a scheduler or CI keeps of a run: each stage once, and no line that only says that nothing is done yet."""
    found = lines_of(
        Progress("reading the data", 0, 1),
        Progress("reading the data", 1, 1),
        Progress("reading the data", 1, 1),
        Progress("sampling", 0, 64, "rows"),
        Progress("sampling", 32, 64, "rows", "90 tokens/s", part=0),
        Progress("sampling", 32, 64, "rows", "97 tokens/s", part=1),
        Progress("sampling", 32, 64, "rows", "98 tokens/s", part=1),
        Progress("data", 0, 0, note="90 train rows"),
        Progress("data", 0, 0, note="90 train rows"),
    )
    assert found == ["reading the data: done", "sampling: 64/64 rows 97 tokens/s", "data: 90 train rows"]


def test_a_stage_of_the_next_iteration_is_told_anew() -> None:
    once = [Progress("scoring", 0, 4, "batches"), Progress("scoring", 2, 4, "batches"), Progress("scoring", 4, 4, "batches")]
    assert lines_of(*once, *once) == ["scoring: 4/4 batches"] * 2


def test_a_wait_is_told_without_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A person who looks after an hour must see who holds the device."""
    now = iter(range(0, 10_000, 4))
    monkeypatch.setattr(live.time, "monotonic", lambda: float(next(now)))
    found = lines_of(
        *(Progress("waiting for GPU 0", 0, 1, "", f"pid 7 holds it, {4 * i} s") for i in range(8)), Progress("waiting for GPU 0", 1, 1)
    )
    assert found == ["waiting for GPU 0: pid 7 holds it, 12 s", "waiting for GPU 0: pid 7 holds it, 24 s", "waiting for GPU 0: done"]


def test_a_terminal_shows_a_note_once() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with live.bars(console):
        tell("data", "90 train rows")
        tell("data", "90 train rows")
        tell("data", "91 train rows")
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert (text.count("90 train rows"), text.count("91 train rows")) == (1, 1)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_of_few_letters_does_not_end_the_run(terminal: bool) -> None:
    """PYTHONIOENCODING=ascii or an old locale: the bar and θ are drawn with what there is."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    with live.bars(Console(file=stream, force_terminal=terminal, width=80)):
        tell("iter-0 · training", "θ → λ")
        emit(Progress("iter-0 · training", 1, 2, "", "ℓ"))
        emit(Progress("iter-0 · training", 2, 2, "", "ℓ"))
    stream.flush()
    assert b"training" in stream.buffer.getvalue()  # type: ignore[attr-defined]


def test_lines_from_many_threads_are_whole() -> None:
    console = Console(file=io.StringIO(), width=200)
    with live.bars(console):
        threads = [threading.Thread(target=tell, args=("note", str(i))) for i in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(console.file.getvalue().splitlines()) == sorted(f"note: {i}" for i in range(50))  # type: ignore[attr-defined]
