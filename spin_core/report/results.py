"""A campaign's results in words and rows, for terminal, page and UI."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spin_core.campaign.ledger import Ledger, Turn
from spin_core.campaign.rules import Outcome, best_player, deciding, end_of, gain_of, made_it_worse, metric_of, most_won
from spin_core.evaluation.intervals import Interval
from spin_core.recipe import Recipe, StopSettings
from spin_core.store import Store

LEGEND = (
    "★ best, ✗ worse than its opponent · ±: 95 % of what other prompts of this kind would give · NLL: nats a token of the human answers "
    "· tokens: of sampled answers, cut: those that reached the limit · game: human answer preferred over the opponent's · γ: the step "
    "that the validation rows chose, 0 is none"
)
_TITLES = {"nll": "NLL", "unfinished": "cut"}
_PLAIN = {"tokens", "unfinished", "greedy"}  # shown without an interval
HIDDEN = {"entropy", "distinct"}  # in metrics.json only
Figure = Mapping[str, Any]


def played_turns(store: Store, recipe: Recipe) -> list[Turn]:
    """The campaign's turns whose results are there, in order."""
    return Ledger(store, recipe.name).whole_turns()


def state_of(turns: Sequence[Turn], recipe: Recipe) -> str:
    """How far the campaign is, in a sentence."""
    total = len(recipe.iterations)
    if len(turns) >= total:
        return f"finished: {total} iteration{'s' if total > 1 else ''}"
    if reason := end_of([*map(Outcome.of, turns)], recipe.stop):
        return f"ended after {len(turns)} of {total} iterations: {reason}"
    return f"{len(turns)} of {total} iterations played"


@dataclass(frozen=True)
class Cell:
    """A figure of a player for people."""

    value: str = ""
    half: str = ""  # of its interval, where it is shown
    moved: str = ""  # against the opponent
    told: str = ""  # better or worse, where the interval leaves no doubt


@dataclass(frozen=True)
class Row:
    """A player in the table."""

    number: int  # t of θ_t
    mark: str  # ★ best, ✗ worse than its opponent
    opponent: int | None  # t of the θ_t that it was trained against
    cells: Mapping[str, Cell]  # by column

    @property
    def name(self) -> str:
        """θ_t and its mark."""
        return f"θ_{self.number} {self.mark}".strip()


def table_of(turns: Sequence[Turn], stop: StopSettings) -> list[Row]:
    """A row a player, the SFT model first, each with the same columns; figures are of the held-out rows that are reported."""
    if not turns:
        return []
    outcomes = [*map(Outcome.of, turns)]
    best, chosen = best_player(outcomes, stop), any("gamma" in turn.ref("model").facts for turn in turns)
    rows = [Row(0, "★" if not best else "", None, _player(turns[0].metrics, "before"))]
    for turn, outcome in zip(turns, outcomes, strict=True):
        cells = _player(turn.metrics, "after")
        if judged := turn.metrics["splits"]["test"].get("judge"):
            cells["judge"] = _cell(judged["opponent"]["won"], "share")
        cells["game"] = _cell(turn.metrics["splits"]["test"]["game"]["won"], "share", plain=True)
        if chosen:
            cells["γ"] = Cell(_chosen(turn.ref("model").facts))
        number = turn.iteration + 1
        mark = "★" if number == best else "✗" if made_it_worse(outcome, stop) else ""
        rows.append(Row(number, mark, turn.opponent, cells))
    columns = dict.fromkeys(name for row in rows for name in row.cells)
    return [Row(row.number, row.mark, row.opponent, {name: row.cells.get(name, Cell()) for name in columns}) for row in rows]


def rows_for(turns: Sequence[Turn], stop: StopSettings) -> list[dict[str, str]]:
    """`table_of` as one dict of texts a player."""
    return [
        {"model": row.name} | {name: f"{cell.value} ±{cell.half}" if cell.half else cell.value for name, cell in row.cells.items()}
        for row in table_of(turns, stop)
    ]


def rows_with_changes(turns: Sequence[Turn], stop: StopSettings) -> list[dict[str, str]]:
    """`rows_for` with what each figure gained over the opponent's beside it, ▲ better and ▼ worse where that is sure."""
    arrows = {"better": " ▲", "worse": " ▼", "": ""}
    found = []
    for told, row in zip(table_of(turns, stop), rows_for(turns, stop), strict=True):
        moved = {name: f" ({cell.moved}{arrows[cell.told]})" for name, cell in told.cells.items() if cell.moved}
        found.append({name: text + moved.get(name, "") for name, text in row.items()})
    return found


def _player(metrics: Mapping[str, Any], who: str) -> dict[str, Cell]:
    kinds, split = metrics["figures"], metrics["splits"]["test"]
    order = sorted((name for name in split[who] if name not in HIDDEN), key=lambda name: (name in {"tokens", "unfinished"}, name == "nll"))
    gained = split["gained"] if who == "after" else {}
    return {title(name): _cell(split[who][name], **kinds[name], plain=name in _PLAIN, gained=gained.get(name)) for name in order}


def _cell(figure: Figure, unit: str, better: str | None = None, *, plain: bool = False, gained: Figure | None = None) -> Cell:
    scale, digits = _scale(unit)
    half = Interval(**figure).half
    moved = told = ""
    if gained is not None:
        moved = shown(gained, unit, sign=True)
        if better and _told(gained["low"], gained["high"]):
            told = "better" if (gained["value"] > 0) == (better == "higher") else "worse"
    return Cell(
        shown(figure, unit, plain=True), "" if plain or half is None else f"{half * scale:.{min(digits, 2)}f}", moved=moved, told=told
    )


def shown(figure: Figure, unit: str, *, plain: bool = False, sign: bool = False) -> str:
    """A figure for a table of 80 columns, with ± half its interval's width unless it is to be `plain`; a difference, with its `sign`, is
    smaller, and keeps a digit more of that.
    """
    scale, digits = _scale(unit)
    text = f"{figure['value'] * scale:{'+' if sign else ''}.{digits}f}{'%' if unit == 'share' and not sign else ''}"
    half = Interval(**figure).half
    return text if plain or half is None else f"{text} ±{half * scale:.{digits if sign else min(digits, 2)}f}"


def _scale(unit: str) -> tuple[int, int]:
    """By what a figure is multiplied for people, and its digits."""
    return (100, 1) if unit == "share" else (1, 1 if unit == "tokens" else 3)


def title(name: str) -> str:
    """A figure's column."""
    return _TITLES.get(name, name)


def _chosen(facts: Mapping[str, Any]) -> str:
    """What was taken on the validation rows; empty where nothing was chosen."""
    if "gamma" not in facts:
        return ""
    epoch = f", epoch {facts['epoch']}" if facts["epoch"] is not None else ""
    return f"{facts['gamma']:g}{epoch}"


def verdict(turns: Sequence[Turn], stop: StopSettings) -> list[str]:
    """Which model is best and by how much, then a sentence a turn."""
    if not turns:
        return []
    outcomes = [*map(Outcome.of, turns)]
    best, metric = best_player(outcomes, stop), metric_of(turns[-1].metrics, stop)
    if best:
        over = turns[best - 1].metrics
        found = over["splits"]["test"]["over_start"].get(metric)
        by = f": {_moved(found, over['figures'][metric], metric)} over θ_0" if found else ""
        sure = not found or found["low"] is None or _told(found["low"], found["high"])
        lines = [f"θ_{best} is best{by}{'' if sure else ', which chance could be'}"]
    else:
        lines = ["θ_0 is best: no iteration has made it better"]
    if best != most_won(outcomes, stop):
        metric += " and, where chance could be the difference, by NLL"
    lines[0] += f" (chosen by {metric} on the {'validation' if deciding(turns[-1].metrics) == 'validation' else 'held-out'} rows)"
    return lines + [_of_turn(turn, outcome, stop) for turn, outcome in zip(turns, outcomes, strict=True)]


def _of_turn(turn: Turn, outcome: Outcome, stop: StopSettings) -> str:
    gained, kinds = turn.metrics["splits"]["test"]["gained"], turn.metrics["figures"]
    metric = metric_of(turn.metrics, stop)
    names = [name for name in dict.fromkeys((metric, "checks", "nll")) if name in gained]
    moved = ", ".join(_moved(gained[name], kinds[name], name) for name in names)
    if made_it_worse(outcome, stop):
        says = "worse, and not gone on with" if stop.on_worse != "go_on" else "worse"
    else:
        gain = gain_of(turn.metrics, stop, "test")
        told = _told(gain.low, gain.high)
        says = f"no difference in {title(metric)} can be told" if not told else "better" if gain.value > 0 else "worse"
    return f"θ_{turn.iteration + 1} against θ_{turn.opponent}: {moved}: {says}"


def _moved(figure: Figure, kind: Mapping[str, Any], name: str) -> str:
    """A difference in words: of shares in points."""
    scale, digits = _scale(kind["unit"])
    text = f"{title(name)} {figure['value'] * scale:+.{digits}f}"
    if (half := Interval(**figure).half) is not None:
        text += f" ± {half * scale:.{digits}f}"
    return f"{text} points" if kind["unit"] == "share" else text


def _told(low: float | None, high: float | None) -> bool:
    """Whether an interval leaves zero out."""
    return low is not None and high is not None and (low > 0 or high < 0)


def warnings_of(turns: Sequence[Turn]) -> list[str]:
    """What each iteration's diagnostics say."""
    return [f"iteration {turn.iteration}: {text}" for turn in turns for text in turn.metrics["diagnostics"]["warnings"].values()]
