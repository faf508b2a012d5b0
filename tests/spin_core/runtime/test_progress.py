"""What a child tells of its work."""

import pytest

from spin_core.runtime import progress
from spin_core.runtime.progress import Parts, Progress, Teller, parse_line


def events(capsys: pytest.CaptureFixture[str]) -> list[Progress]:
    return [found for line in capsys.readouterr().out.splitlines() if (found := parse_line(line))]


def test_a_million_steps_are_few_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each would fill the log and the parent's pipe; the last one must come, or a bar stays short of its end."""
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    teller = Teller("judging", 1000, "questions", done=10)
    for step in range(990):
        now += 0.001
        teller.add(1, f"at {step}")
    found = events(capsys)
    assert [event.done for event in found] == [10, 510, 1000]
    assert (found[-1].name, found[-1].total, found[-1].unit, found[-1].note) == ("judging", 1000, "questions", "at 989")


def test_work_that_is_found_on_the_way_moves_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    """An event without an end would be shown as a sentence, not as a bar."""
    teller = Teller("benchmarks", 0, "requests")
    assert events(capsys) == []
    teller.add(0, ahead=4)
    teller.add(4)
    assert [(event.done, event.total) for event in events(capsys)] == [(0, 4), (4, 4)]


def test_parts_add_up_whatever_each_says_next() -> None:
    parts = Parts()
    assert not parts
    for part, done in [(0, 4), (1, 1.5), (0, 6), (2, 0), (1, 0.5), (1, 2)]:
        parts[part] = done
    assert [parts[part] for part in range(4)] == [6, 2, 0, 0]
    assert (bool(parts), parts.total) == (True, 8)


def test_the_sum_of_one_part_is_what_it_says() -> None:
    """Rounded, it would stay short of its end, and its bar would never be full."""
    parts = Parts()
    for done in (0.1, 0.7, 0.3):
        parts[0] = done
    assert parts.total == 0.3
