"""What an engine is: token ids in, (token ids, finish reason, text) out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from spin_core.encoding.ends import Ends
from spin_core.recipe import GenerationSettings
from spin_core.store import Ref

OnAnswer = Callable[[int, int], None]  # (answers so far, tokens of those that are new)


@dataclass(frozen=True)
class Address:
    """Where a model is served."""

    url: str  # without /v1
    model: str
    key: str = field(repr=False)


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
class Prompt:
    """What is to be answered, how often, and from which random numbers."""

    ids: list[int]  # [P]
    seed: int  # of its first answer, see `seed_of`; answer k is drawn from seed + k
    samples: int = 1
    logp: bool = False  # whether the answers' log-probs are wanted, which cost time
    greedy: bool = False  # the most likely tokens instead of a draw


@dataclass(frozen=True)
class Answer:
    """One sampled answer."""

    ids: list[int]  # [R] as the engine returned them; the last is an end of turn only if it was emitted
    finish_reason: str  # stop | length | "error: …" for a row that the engine refused
    text: str
    # nats, summed over ids, under the model's own distribution (temperature 1, no nucleus); None where it was not asked for
    logp: float | None = None


class Engine(Protocol):
    """Samples answers under one model. Calls may come from several threads at once."""

    window: int  # rows in flight that keep its batch full; shards are leased to it while it has fewer

    @property
    def address(self) -> Address | None:
        """Where it is served, for clients of other libraries; None for one that is no server."""
        ...

    @property
    def node(self) -> str:
        """Of a cluster, on which whoever uses the address has to be; empty on this machine."""
        ...

    @property
    def where(self) -> str:
        """The same for people, with its GPUs."""
        ...

    def sample(self, prompts: Sequence[Prompt], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        """The prompts' answers, those of a prompt side by side, each ending at the first end of turn.

        They depend on the prompt and its seed, not on what else is in the batch, but for the last bits of the logits: these
        differ with a batch's shape, and now and then tip a draw. Raises ChildCrash if the engine is gone.
        """
        ...

    def alive(self) -> bool:
        """Whether the engine can take work."""
        ...

    def close(self) -> None:
        """Ends the engine and frees its memory; may be called twice."""
        ...
