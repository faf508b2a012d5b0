"""What a node tells the run: in few messages, and its end at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from spin_core.cluster import host as host_module
from spin_core.cluster.host import Done, Failed, Host
from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Answer, OnAnswer, Prompt
from spin_core.runtime.errors import BadInput

ENDS = Ends([1], ["</s>"], 1)


class Scripted:
    """An engine that does as it is told."""

    address, node, where, window = None, "", "", 1

    def __init__(self, act: Callable[[OnAnswer], None]) -> None:
        self._act = act

    def alive(self) -> bool:
        return True

    def sample(self, prompts: Sequence[Prompt], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        self._act(on_answer)
        return [Answer([1], "stop", "")] * len(prompts)

    def close(self) -> None:
        pass


def told_by(act: Callable[[OnAnswer], None]) -> list[list[Any]]:
    host = Host.__new__(Host)  # its constructor guards a whole process
    host._engine = Scripted(act)
    return list(host.sample([Prompt([1], 0)], ENDS))


def test_answers_are_told_together_and_the_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message an answer would be thousands a second to one process; an end that waits leaves an engine idle."""
    monkeypatch.setattr(host_module, "_ANSWERS_S", 1.0)

    def act(on_answer: OnAnswer) -> None:
        for number in range(1, 101):
            on_answer(number, 3)
        time.sleep(1.5)
        on_answer(101, 5)

    started = time.monotonic()
    assert told_by(act) == [[(100, 300)], [(101, 5), Done([Answer([1], "stop", "")])]]
    assert time.monotonic() - started < 1.9


def test_an_error_is_told_after_what_came_before() -> None:
    def act(on_answer: OnAnswer) -> None:
        on_answer(1, 2)
        raise BadInput("no")

    ((answers, failed),) = told_by(act)
    assert answers == (1, 2)
    assert isinstance(failed, Failed)
    assert "no" in failed.told
