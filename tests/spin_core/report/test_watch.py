"""`spinflow status --watch`: what somebody sees of a run in another process, from the first look to its end."""

import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from rich.console import Console

from spin_core.campaign.workspace import campaign_lock, open_run_logs
from spin_core.report.watch import watch
from spin_core.runtime.board import Board
from spin_core.runtime.progress import Progress
from spin_core.store import Store
from tests.spin_core.campaign.test_survey import play, recipe

LOG = """19:19:22.058 | INFO    | Flow run 'c' - fine
19:19:23.058 | ERROR   | Task run 'iter-1 · train' - the trainer ended with status -9; see finetune.log
Traceback (most recent call last):
19:19:24.058 | WARNING | Flow run 'c' - tried again
19:19:25.058 | WARNING | Flow run 'c' - tried again
"""


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Iterator[tuple[Store, Board, ExitStack]]:
    """A campaign at work in its second iteration: its lock is held until the stack is closed."""
    store = Store(tmp_path)
    play(store, recipe(tiny_model, iterations=[{}, {}]))
    with ExitStack() as stack:
        stack.enter_context(campaign_lock(store, "c", lambda holder: None))
        folder = open_run_logs(store, "c")
        (folder / "flow.log").write_text(LOG)
        yield store, Board(folder), stack


def watched(run: tuple[Store, Board, ExitStack], tiny_model: Path, terminal: bool, why: str = "") -> str:
    store, board, stack = run
    looks = 0

    def pause(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            board.note(Progress("iter-1 · sampling", 16, 16, "rows"))
            board.note(Progress("iter-1 · train", 3, 12, "steps", "loss 0.61"))
            board.write()
        else:
            board.end(why)
            stack.close()

    out = io.StringIO()
    watch(store, recipe(tiny_model, iterations=[{}, {}]), Console(file=out, width=120, force_terminal=terminal), pause)
    assert looks == 2
    return out.getvalue()


def test_a_run_is_followed_to_its_end(run: tuple[Store, Board, ExitStack], tiny_model: Path) -> None:
    first, during, last = watched(run, tiny_model, False).split("c · iteration 1 of 0 … 1 · ")[1:]
    assert first.startswith("running in process ")
    assert "to do: train answers, pairs, reference, model" in first.replace("\n", " ")
    assert "iter-1 · sampling" not in first
    row = next(line for line in during.splitlines() if "iter-1 · train" in line)
    assert all(text in row for text in ("at work", "3/12 steps", "loss 0.61", "0:00 left"))
    assert "done" in next(line for line in during.splitlines() if "iter-1 · sampling" in line)
    assert "the trainer ended with status -9" in during
    assert during.count("tried again") == 1
    assert last.startswith("not running")


def test_in_a_terminal_it_stays_in_its_place(run: tuple[Store, Board, ExitStack], tiny_model: Path) -> None:
    text = watched(run, tiny_model, True, "disk full while writing model")
    assert "\x1b[2K" in text  # lines are drawn again
    assert text.rpartition("\x1b[?25h")[2].count("the last run ended with: disk full while writing model") == 1  # what stays


def test_a_campaign_that_nobody_runs_is_shown_once(tmp_path: Path, tiny_model: Path) -> None:
    out = io.StringIO()
    watch(Store(tmp_path), recipe(tiny_model), Console(file=out, width=120))
    assert out.getvalue().startswith("c · iteration 0 of 0 … 0 · not running\nto do: prompts, start, encoded")


def test_a_run_that_was_killed_says_so(run: tuple[Store, Board, ExitStack], tiny_model: Path) -> None:
    store, board, stack = run
    board.note(Progress("iter-1 · train", 3, 12, "steps"))
    board.write()
    stack.close()
    out = io.StringIO()
    watch(store, recipe(tiny_model, iterations=[{}, {}]), Console(file=out, width=120))
    assert "the last run was ended from outside; `spinflow run` goes on" in out.getvalue()
    assert "unfinished" in out.getvalue()
