"""What people see while a run goes on."""

import io

from rich.console import Console

from spin_core.report.live import bars
from spin_core.runtime.progress import Progress, emit


def shown(terminal: bool, *events: Progress) -> str:
    out = io.StringIO()
    with bars(Console(file=out, force_terminal=terminal, width=120)):
        for event in events:
            emit(event)
    return out.getvalue()


def test_shards_are_one_bar() -> None:
    """A bar a shard would flood the terminal from a hundred shards on."""
    parts = [Progress("sampling", 8, 24, "rows", "90 tokens/s", part) for part in (0, 2, 1, 1)]
    last = shown(True, *parts).split("\r")[-1]
    assert last.count("sampling") == 1
    assert "24/24" in last


def test_a_stage_that_comes_again_starts_anew() -> None:
    out = shown(True, *(Progress("scoring", done, 4) for done in (0, 4, 0, 1)))
    assert out.split("\r")[-1].count("1/4") == 1


def test_without_a_terminal_lines_are_few() -> None:
    out = shown(False, *(Progress("training", step, 1000, "steps", "loss 0.5") for step in range(1001)))
    assert out.splitlines() == ["training: 1000/1000 steps loss 0.5"]
