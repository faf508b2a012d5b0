"""What is measured of every player and what follows from it: the recipe's groups `evaluation` and `stop`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from spin_core.recipe.group import Group
from spin_core.recipe.identity import Speed

_FUNCTION = r"^[^:]+\.py:[A-Za-z_][A-Za-z0-9_]*$"


class HarnessSettings(Group):
    """Benchmarks by lm-evaluation-harness against the running engine (extra `harness`); a figure a task."""

    preset: Literal["open-llm-leaderboard-v1", "open-llm-leaderboard-v2"] | None = None
    """The six tasks of the Open LLM Leaderboard, with the shots of the SPIN paper (v1), or its second edition."""
    tasks: dict[str, Annotated[int, Field(ge=0)] | None] = Field({})
    """Further tasks or groups of tasks, each with its number of examples in the prompt; none takes the task's own."""
    include_path: str | None = None
    """A folder with task files of your own."""
    limit: int | None = Field(None, ge=1)
    """Only so many documents a task: for trying out."""
    max_length: int = Field(2048, ge=16)
    """Longest prompt and answer in tokens; longer prompts are cut from the left."""
    concurrency: Annotated[int, Speed] = Field(64, ge=1)
    """Requests that the engine has at once."""

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if not self.preset and not self.tasks:
            raise ValueError("evaluation.harness needs a preset or tasks, as tasks: {gsm8k: 5}")
        return self


class JudgeSettings(Group):
    """A language model that says which of two answers is better; it is asked twice, with the answers in both orders."""

    url: str = Field(pattern=r"^https?://[^\s@]+$")
    """Base URL of an OpenAI-compatible server, without /v1."""
    model: str = Field(min_length=1)
    """The judge's name there."""
    api_key_env: Annotated[str, Speed] = Field("SPINFLOW_JUDGE_KEY", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """The environment variable that holds the server's API key."""
    rows: int | None = Field(None, ge=1)
    """Only the first so many held-out rows of a split, to bound the cost: two requests a row for each pair of players."""
    concurrency: Annotated[int, Speed] = Field(16, ge=1)
    """Requests that are open at once."""


class EvaluationSettings(Group):
    """What is measured on held-out rows after every iteration."""

    evaluators: list[str] = Field(["nll", "checks", "lengths"], min_length=1)
    """Each gives figures of every player, on every held-out row: nll (of the human answers), checks (right answers, where rows carry
    checks), lengths (tokens, unfinished, entropy, distinct answers), and those that installed packages bring (`spinflow.evaluators`)."""
    custom: list[Annotated[str, StringConstraints(pattern=_FUNCTION)]] = Field([])
    """Your own evaluators, `FILE.py:FUNCTION`. The function is called as f(prompt, answer, real) with the conversation, the answer and
    the human one, and returns how good the answer is: a number, true or false, or None where it cannot tell. Higher is better."""
    samples: int = Field(4, ge=1, le=64)
    """Answers to each held-out prompt, at the campaign's temperature. The first of them is the one that the game is played with."""
    greedy: bool = True
    """One more answer to each held-out prompt, of the most likely tokens."""
    harness: HarnessSettings | None = None
    """Benchmarks of lm-evaluation-harness."""
    judge: JudgeSettings | None = None
    """How often a language model prefers the new player's answers over the opponent's, and over those of θ_0."""
    sample_prompts: int = Field(3, ge=0)
    """Prompts shown with the human, old and new answers."""


class StopSettings(Group):
    """What follows from an iteration. It is decided on validation rows (`data.validation_size`), or on the held-out ones without them."""

    metric: str = Field("auto", min_length=1)
    """What counts: a figure of an evaluator, as `nll`, `checks`, `greedy` or your own function, or `game` (how often the human answer is
    preferred over the opponent's). auto takes checks where rows carry them, else nll."""
    on_worse: Literal["stop", "back_to_best", "go_on"] = "back_to_best"
    """After an iteration that made the metric worse: end the campaign, play the next one against the best player so far, or against
    what came out of it. It is kept and marked all the same."""
    worse_than: float = Field(0.0, ge=0.0)
    """Worse is a loss of more than this (nats a token, or a share: 0.01 is a point) whose 95 % interval lies below zero."""
    min_gain: float | None = None
    """Stop where iterations win less than this; None never does."""
    patience: int = Field(1, ge=1)
    """So many iterations in a row have to win less than `min_gain`."""
    nothing_won: bool = True
    """Stop after an iteration whose line search (`training.line_search`) found no model better than θ_t."""
