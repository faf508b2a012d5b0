"""What an engine is: token ids in, (token ids, finish reason, text) out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

OnAnswer = Callable[[int, int], None]  # (answers so far, tokens of this one)
Ended = Callable[[], bool]  # whether a start should be given up, because the pool was closed meanwhile


@dataclass(frozen=True)
class Answer:
    """One sampled answer."""

    ids: list[int]  # [R] as the engine returned them; EOS only if it was emitted
    finish_reason: str  # stop | length | "error: …" for a row that the engine refused
    text: str


class Engine(Protocol):
    """Samples answers under one model. Calls may come from several threads at once."""

    window: int  # rows in flight that keep its batch full; shards are leased to it while it has fewer

    def sample(self, prompts: Sequence[Sequence[int]], on_answer: OnAnswer) -> list[Answer]:
        """One answer a prompt, in order. Raises ChildCrash if the engine is gone."""
        ...

    def alive(self) -> bool:
        """Whether the engine can take work."""
        ...

    def close(self) -> None:
        """Ends the engine and frees its memory; may be called twice."""
        ...
