"""What an engine is: token ids in, (token ids, finish reason, text) out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from spin_core.encoding.ends import Ends
from spin_core.recipe import GenerationSettings
from spin_core.store import Ref

OnAnswer = Callable[[int, int], None]  # (answers so far, tokens of this one)
Ended = Callable[[], bool]  # whether a start should be given up, because the pool was closed meanwhile


@dataclass(frozen=True)
class Sampler:
    """Which distribution an engine samples from, and how long its sequences get."""

    model: Ref
    settings: GenerationSettings
    max_prompt_tokens: int

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt + answer."""
        return self.max_prompt_tokens + self.settings.max_new_tokens


@dataclass(frozen=True)
class Answer:
    """One sampled answer."""

    ids: list[int]  # [R] as the engine returned them; the last is an end of turn only if it was emitted
    finish_reason: str  # stop | length | "error: …" for a row that the engine refused
    text: str


class Engine(Protocol):
    """Samples answers under one model. Calls may come from several threads at once."""

    window: int  # rows in flight that keep its batch full; shards are leased to it while it has fewer

    def sample(self, prompts: Sequence[Sequence[int]], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        """One answer a prompt, in order, that stops at the first end of turn. Raises ChildCrash if the engine is gone."""
        ...

    def alive(self) -> bool:
        """Whether the engine can take work."""
        ...

    def close(self) -> None:
        """Ends the engine and frees its memory; may be called twice."""
        ...
