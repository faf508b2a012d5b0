"""Evaluators: held-out rows with a player's answers, or its log-probs, in; figures with a value a row out.

Those here are built in. Others come as entry points of the group `spinflow.evaluators`, each a class without arguments that keeps
to `Evaluator`, or from a file of the user's (`evaluation.custom`).
"""

from __future__ import annotations

import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from spin_core.contracts.checks import scorer
from spin_core.contracts.rows import Message
from spin_core.runtime.errors import BadInput

GROUP = "spinflow.evaluators"
Needs = Literal["answers", "scores"]
Score = Callable[[str], float | None]  # how good an answer to one row is; None where that cannot be told


@dataclass(frozen=True)
class Answer:
    """One of a player's answers."""

    text: str
    tokens: int
    unfinished: bool  # cut at `generation.max_new_tokens`
    logp: float | None = None  # nats under the player; None where its engine gave none


@dataclass(frozen=True)
class Row:
    """A held-out row; what an evaluator does not need may be empty."""

    prompt: list[Message]
    real: str
    check: Mapping[str, Any] | None = None
    answers: list[Answer] = field(default_factory=list)  # at the campaign's temperature
    greedy: Answer | None = None
    real_logp: float = 0.0  # nats, of the human answer
    real_tokens: int = 1


@dataclass(frozen=True)
class Figure:
    """A figure of a player: its value on every row, None where a row has none."""

    values: Sequence[float | None]
    unit: Literal["share", "nats", "tokens", "score"] = "score"
    better: Literal["higher", "lower"] | None = None  # None: neither is
    weights: Sequence[float] | None = None  # the figure is Σ values / Σ weights; without them a mean


class Evaluator(Protocol):
    """One way to judge a player alone."""

    needs: ClassVar[Needs]
    version: ClassVar[int]  # raised where its figures change

    def judge(self, rows: Sequence[Row]) -> dict[str, Figure]:
        """Its figures by name, which no other evaluator may have; none where the rows say nothing of them."""
        ...


class Nll:
    """`nll`: nats a token of the human answers."""

    needs: ClassVar[Needs] = "scores"
    version: ClassVar[int] = 1

    def judge(self, rows: Sequence[Row]) -> dict[str, Figure]:
        """See `Evaluator`."""
        return {"nll": Figure([-row.real_logp for row in rows], "nats", "lower", [float(row.real_tokens) for row in rows])}


class Checks:
    """`checks` and `greedy`: the share of right answers, where rows carry checks."""

    needs: ClassVar[Needs] = "answers"
    version: ClassVar[int] = 1

    def judge(self, rows: Sequence[Row]) -> dict[str, Figure]:
        """See `Evaluator`."""
        if not any(row.check for row in rows):
            return {}
        return _of_answers("checks", "greedy", "share", rows, lambda row: scorer(row.check) if row.check else _silent)


class Lengths:
    """`tokens`, `unfinished`, `entropy` (nats an answer, as far as its engine gave log-probs) and `distinct` answers of a prompt."""

    needs: ClassVar[Needs] = "answers"
    version: ClassVar[int] = 1

    def judge(self, rows: Sequence[Row]) -> dict[str, Figure]:
        """See `Evaluator`."""
        found = {
            "tokens": Figure([_mean([a.tokens for a in row.answers]) for row in rows], "tokens"),
            "unfinished": Figure([_mean([a.unfinished for a in row.answers]) for row in rows], "share", "lower"),
        }
        entropy = [_mean([-a.logp for a in row.answers if a.logp is not None]) for row in rows]
        if any(value is not None for value in entropy):
            found["entropy"] = Figure(entropy, "nats")
        if any(len(row.answers) > 1 for row in rows):
            distinct = [len({a.text for a in row.answers}) / len(row.answers) if len(row.answers) > 1 else None for row in rows]
            found["distinct"] = Figure(distinct, "share")
        return found


class Custom:
    """A function of the user's: `FILE.py:FUNCTION`, which gives the figures FUNCTION and FUNCTION_greedy."""

    needs: ClassVar[Needs] = "answers"
    version: ClassVar[int] = 1

    def __init__(self, place: str) -> None:
        path, _, self._name = place.rpartition(":")
        self._place, self._file = place, Path(path)

    def judge(self, rows: Sequence[Row]) -> dict[str, Figure]:
        """See `Evaluator`. Raises BadInput where the function is not there, raises, or gives something else than a number."""
        function = self.function()

        def of_row(row: Row) -> Score:
            def score(text: str) -> float | None:
                try:
                    found = function(row.prompt, text, row.real)
                    return None if found is None else float(found)
                except Exception as error:
                    what = f"{type(error).__name__}: {error}"
                    raise BadInput(f"evaluation.custom: {self._place} failed on the answer {text[:60]!r}: {what}") from error

            return score

        return _of_answers(self._name, f"{self._name}_greedy", "score", rows, of_row)

    def function(self) -> Callable[..., Any]:
        """The user's. Raises BadInput."""
        try:
            found = runpy.run_path(str(self._file)).get(self._name)
        except Exception as error:
            raise BadInput(f"evaluation.custom: {self._file} cannot be run: {type(error).__name__}: {error}") from error
        if not callable(found):
            raise BadInput(f"evaluation.custom: {self._file} has no function {self._name}", remedy="write FILE.py:FUNCTION")
        function: Callable[..., Any] = found
        return function


def _silent(text: str) -> None:
    """Of a row without a check."""


def _of_answers(
    name: str, greedy: str, unit: Literal["share", "score"], rows: Sequence[Row], of_row: Callable[[Row], Score]
) -> dict[str, Figure]:
    """Two figures of what is asked once a row: the mean over its answers, and of its greedy one where there are any."""
    scores = [*map(of_row, rows)]
    drawn = [_mean([score(answer.text) for answer in row.answers]) for row, score in zip(rows, scores, strict=True)]
    found = {name: Figure(drawn, unit, "higher")}
    if any(row.greedy for row in rows):
        best = [_mean([score(row.greedy.text)]) if row.greedy else None for row, score in zip(rows, scores, strict=True)]
        found[greedy] = Figure(best, unit, "higher")
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


_OWN: dict[str, Callable[[], Evaluator]] = {"nll": Nll, "checks": Checks, "lengths": Lengths}


def known(name: str) -> None:
    """Raises BadInput where there is no such evaluator, or its function cannot be had."""
    found = evaluator(name)
    if isinstance(found, Custom):
        found.function()


def evaluator(name: str) -> Evaluator:
    """The evaluator of that name, or of a place in a user's file. Raises BadInput where there is none."""
    if ".py:" in name:
        return Custom(name)
    if name in _OWN:
        return _OWN[name]()
    known = {found.name: found for found in entry_points(group=GROUP)}
    if name not in known:
        raise BadInput(f"evaluation.evaluators: there is no evaluator {name!r}", remedy=f"known are {', '.join((*_OWN, *sorted(known)))}")
    loaded: Evaluator = known[name].load()()
    return loaded
