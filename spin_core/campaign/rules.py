"""What follows from the turns that were played: who is best, who plays next, and when a campaign ends. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spin_core.campaign.ledger import Turn, settings_of
from spin_core.recipe import Recipe, StopSettings
from spin_core.runtime.errors import BadInput
from spin_core.selection.stage import nothing_won

_BY_NLL = StopSettings(metric="nll")


@dataclass(frozen=True)
class Outcome:
    """A turn as far as rules look at it."""

    opponent: int  # t of the θ_t that it was played against
    metrics: Mapping[str, Any]
    nothing_won: bool = False  # its line search stayed at θ_t

    @classmethod
    def of(cls, turn: Turn) -> Outcome:
        """From the ledger."""
        return cls(turn.opponent, turn.metrics, nothing_won(turn.ref("model")))


@dataclass(frozen=True)
class Gain:
    """What a turn won in the metric that counts, higher is better; the ends of its interval where it has one."""

    metric: str
    value: float
    low: float | None
    high: float | None


def deciding(metrics: Mapping[str, Any]) -> str:
    """The split on which it is decided."""
    return "validation" if "validation" in metrics["splits"] else "test"


def metric_of(metrics: Mapping[str, Any], stop: StopSettings) -> str:
    """The figure that counts."""
    if stop.metric != "auto":
        return stop.metric
    return "checks" if "checks" in metrics["figures"] else "nll" if "nll" in metrics["figures"] else "game"


def gain_of(metrics: Mapping[str, Any], stop: StopSettings, on: str = "") -> Gain:
    """What a turn won over its opponent, on the rows that decide unless others are named.

    Raises BadInput where no figure of its rows is the recipe's metric.
    """
    split, metric = metrics["splits"][on or deciding(metrics)], metric_of(metrics, stop)
    if metric == "game":
        won = split["game"]["won"]
        low, high = (None if won[end] is None else won[end] - 0.5 for end in ("low", "high"))
        return Gain(metric, won["value"] - 0.5, low, high)
    if metric not in split["gained"]:
        known = ", ".join(sorted({*split["gained"], "game"}))
        raise BadInput(f"stop.metric: no evaluator gives {metric!r} for these rows", remedy=f"there are {known}")
    found, better = split["gained"][metric], metrics["figures"][metric]["better"]
    if better is None:
        raise BadInput(f"stop.metric: neither more nor less of {metric} is better", remedy="name another figure")
    value, low, high = found["value"], found["low"], found["high"]
    if better == "lower":
        value, low, high = -value, None if high is None else -high, None if low is None else -low
    return Gain(metric, value, low, high)


def made_it_worse(outcome: Outcome, stop: StopSettings) -> bool:
    """Whether a turn lost more than it may, and more than chance makes of it."""
    gain = gain_of(outcome.metrics, stop)
    return gain.value < -stop.worse_than and gain.high is not None and gain.high < 0


def best_player(outcomes: Sequence[Outcome], stop: StopSettings) -> int:
    """t of the best θ_t of all that were played, by the metric that counts.

    Of those that chance could put beside the one with most of it, the best is the one under which human answers are likeliest: shares
    of few right answers scatter more than most iterations win, and the luckiest of many players would be taken for the best.
    """
    top = most_won(outcomes, stop)
    if not outcomes or metric_of(outcomes[-1].metrics, stop) == "nll" or not _has_nll(outcomes):
        return top
    sound = [number for number in range(len(outcomes) + 1) if number == 0 or not made_it_worse(outcomes[number - 1], stop)]
    beside = [number for number in sound if number == top or _could_be_chance(*_lead(outcomes, stop, top, number))]
    return max(beside, key=lambda number: (_lead(outcomes, _BY_NLL, number, 0)[0], -number))


def most_won(outcomes: Sequence[Outcome], stop: StopSettings) -> int:
    """t of the θ_t with most of the metric that counts, whatever chance makes of it; the earlier one of equals."""
    return max(range(len(outcomes) + 1), key=lambda number: (_lead(outcomes, stop, number, 0)[0], -number))


def _lead(outcomes: Sequence[Outcome], stop: StopSettings, one: int, other: int) -> tuple[float, float | None]:
    """What one player has more than another, and half the width of its interval, None where a turn has none.

    Gains add up along who played whom, half widths in squares.
    """
    ours, theirs = (set(_turns_to(outcomes, player)) for player in (one, other))
    gains = {turn: gain_of(outcomes[turn].metrics, stop) for turn in ours ^ theirs}
    value = sum(gain.value if turn in ours else -gain.value for turn, gain in gains.items())
    halves = [(gain.high - gain.low) / 2 for gain in gains.values() if gain.high is not None and gain.low is not None]
    return value, math.hypot(*halves) if len(halves) == len(gains) else None


def _turns_to(outcomes: Sequence[Outcome], player: int) -> Iterator[int]:
    while player > 0:
        yield player - 1
        player = outcomes[player - 1].opponent


def _could_be_chance(value: float, half: float | None) -> bool:
    return half is not None and abs(value) <= half


def _has_nll(outcomes: Sequence[Outcome]) -> bool:
    return all("nll" in outcome.metrics["splits"][deciding(outcome.metrics)]["gained"] for outcome in outcomes)


def best_of(turns: Sequence[Turn], stop: StopSettings) -> int:
    """`best_player` of turns in the ledger."""
    return best_player([*map(Outcome.of, turns)], stop)


def next_opponent(outcomes: Sequence[Outcome], stop: StopSettings) -> int:
    """t of the θ_t that the next turn starts from: the newest, or the best where the newest is worse and `on_worse` says so."""
    if outcomes and stop.on_worse == "back_to_best" and made_it_worse(outcomes[-1], stop):
        return best_player(outcomes, stop)
    return len(outcomes)


def end_of(outcomes: Sequence[Outcome], stop: StopSettings) -> str:
    """Why a campaign ends after these turns, with the key that would have it go on; empty where it goes on."""
    if not outcomes:
        return ""
    if stop.nothing_won and outcomes[-1].nothing_won:
        return "its line search found no model better than the opponent; set stop.nothing_won=false to go on"
    if stop.on_worse == "stop" and made_it_worse(outcomes[-1], stop):
        gain = gain_of(outcomes[-1].metrics, stop)
        return f"it lost {-gain.value:.4g} in {gain.metric}, more than chance makes of it; change stop.on_worse to go on"
    if stop.min_gain is None or len(outcomes) < stop.patience:
        return ""
    gains = [gain_of(outcome.metrics, stop) for outcome in outcomes[-stop.patience :]]
    if any(gain.value >= stop.min_gain for gain in gains):
        return ""
    won = ", ".join(f"{gain.value:+.4g}" for gain in gains)
    return f"{gains[0].metric} won {won}, less than stop.min_gain={stop.min_gain:g}; change it, or stop.patience, to go on"


def next_iteration(turns: Sequence[Turn], recipe: Recipe) -> tuple[int | None, str]:
    """The first iteration that was not played with this recipe, or None and the reason why there is nothing to do."""
    done = played(turns, recipe)
    if len(done) == len(recipe.iterations):
        return None, f"campaign {recipe.name} has all its {len(done)} iterations; add an entry to `iterations` to go on"
    if reason := end_of([*map(Outcome.of, done)], recipe.stop):
        return None, f"campaign {recipe.name} was stopped after iteration {len(done) - 1} by its stop rule: {reason}"
    return len(done), ""


def played(turns: Sequence[Turn], recipe: Recipe) -> list[Turn]:
    """The leading turns that were played with this recipe, against the opponents of its rules, and whose results are there."""
    found: list[Turn] = []
    for turn in turns[: len(recipe.iterations)]:
        if turn.recipe != settings_of(recipe, turn.iteration) or not turn.whole:
            break
        if turn.opponent != next_opponent([*map(Outcome.of, found)], recipe.stop):
            break
        found.append(turn)
    return found
