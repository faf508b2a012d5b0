"""Curves: every held-out figure from player to player with its interval, and what training logged step by step."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spin_core.campaign.ledger import Turn
from spin_core.campaign.rules import Outcome, best_player, made_it_worse
from spin_core.recipe import StopSettings
from spin_core.report.draw.panel import Panel, Picture, Point, around, ticks
from spin_core.report.results import shown, title

_POINTS = 160  # a panel shows; of more steps, the mean of each stretch and the band from its least to its most
_TITLES = {
    "checks": "Checks: right answers",
    "greedy": "Checks: greedy answer right",
    "nll": "NLL of human answers, nats a token",
    "game": "Game: human answer preferred",
    "judge": "Judge: preferred to opponent",
    "tokens": "Tokens an answer",
    "unfinished": "Answers cut at the limit",
    "entropy": "Entropy, nats an answer",
    "distinct": "Different answers to one prompt",
}
_LAST = ("nll", "game", "judge", "tokens", "unfinished", "entropy", "distinct")
_TRAINING: Mapping[str, tuple[tuple[str, str, str], ...]] = {  # title → (key, class, name)
    "Loss": (("loss", "new", ""),),
    "Reward margin": (("rewards/margins", "new", ""),),
    "Reward accuracy": (("rewards/accuracies", "new", ""),),
    "Log-probs gained, nats": (("logratio/real", "new", "human"), ("logratio/generated", "old", "sampled")),
    "Gradient norm": (("grad_norm", "new", ""),),
}
_LOOKS = {"Loss": "loss", "Reward margin": "margin", "Reward accuracy": "accuracy"}  # of validation.jsonl


def held_out(turns: Sequence[Turn], stop: StopSettings) -> list[Picture]:
    """A panel a figure: θ_0, θ_1, … with the 95 % interval as a band; the best is ringed, a lost one is hollow."""
    outcomes = [*map(Outcome.of, turns)]
    best, lost = best_player(outcomes, stop), {turn.iteration + 1 for turn in turns if made_it_worse(Outcome.of(turn), stop)}
    found = []
    kinds = turns[0].metrics["figures"] | {"game": {"unit": "share"}}
    for name in sorted(kinds, key=lambda name: _LAST.index(name) if name in _LAST else -1):
        figures = _by_player(turns, name)
        if figures:
            found.append(_held_out_panel(name, kinds[name]["unit"], figures, best, lost, len(turns)))
    return found


def _by_player(turns: Sequence[Turn], name: str) -> dict[int, dict[str, Any]]:
    """The figure of θ_t by t; game and judge are of a turn, and stand at the player that it made."""
    splits = [(turn.iteration + 1, turn.metrics["splits"]["test"]) for turn in turns]
    if name == "game":
        return {number: split["game"]["won"] for number, split in splits}
    if name == "judge":
        return {number: split["judge"]["opponent"]["won"] for number, split in splits if "judge" in split}
    found = {0: splits[0][1]["before"][name]} if name in splits[0][1]["before"] else {}
    return found | {number: split["after"][name] for number, split in splits if name in split["after"]}


def _held_out_panel(name: str, unit: str, figures: Mapping[int, Mapping[str, Any]], best: int, lost: set[int], last: int) -> Picture:
    known = {number: figure for number, figure in figures.items() if math.isfinite(figure["value"])}
    ends = [value for figure in known.values() for value in (figure["value"], figure["low"], figure["high"]) if value is not None]
    low, high = around(ends)
    if min(ends, default=0.0) >= -1e-3:
        low = max(low, 0.0)
    if unit == "share" and max(ends, default=1.0) <= 1.0:
        high = min(high, 1.0)
    panel = Panel((-0.15, last + 0.15), (low, high), percent=unit == "share")
    panel.grid([(number, f"θ_{number}") for number in range(last + 1)])
    band = [(number, figure) for number, figure in known.items() if figure["low"] is not None]
    if len(band) > 1:
        panel.band([(n, f["low"]) for n, f in band], [(n, f["high"]) for n, f in band], "new")
    for number, figure in band:
        panel.line([(number, figure["low"]), (number, figure["high"])], "whisker")
    panel.line([(number, figure["value"]) for number, figure in known.items()], "new")
    says = []
    for number, figure in known.items():
        text = f"θ_{number} {shown(figure, unit)}"
        says.append(text)
        panel.dot((number, figure["value"]), "best" if number == best else "lost" if number in lost else "new", text)
    head = _TITLES.get(name, title(name))
    return panel.picture(head, f"{head}: {', '.join(says)}")


def training(turns: Sequence[Turn]) -> list[Picture]:
    """A panel a metric, steps counted on over the campaign; dotted are the looks at validation pairs, where there were any."""
    logs = [_lines(turn.trained.file("metrics.jsonl")) for turn in turns]
    looks = [_lines(turn.trained.file("validation.jsonl")) for turn in turns]
    offsets, total = [], 0
    for log in logs:
        offsets.append(total)
        total += len(log)
    found = []
    for head, curves in _TRAINING.items():
        lines = [(kind, name, [_points(log, key, start) for log, start in zip(logs, offsets, strict=True)]) for key, kind, name in curves]
        looked = [_points(look, _LOOKS.get(head, ""), start) for look, start in zip(looks, offsets, strict=True)]
        if any(points for *_, parts in lines for points in parts):
            found.append(_training_panel(head, lines, looked, offsets, total))
    return found


def _training_panel(
    head: str, lines: Sequence[tuple[str, str, list[list[Point]]]], looked: list[list[Point]], offsets: Sequence[int], total: int
) -> Picture:
    values = [value for *_, parts in lines for points in (*parts, *looked) for _, value in points]
    accuracy = head == "Reward accuracy"
    panel = Panel((0, max(total, 1)), (0.0, 1.0) if accuracy else around(values), "step", percent=accuracy)
    panel.grid([(tick, f"{tick:,.0f}") for tick in ticks(0, max(total, 1)) if tick == int(tick)])
    narrow = any(panel.across.at(stop) - panel.across.at(start) < 58 for start, stop in itertools.pairwise((*offsets, total)))
    for number, start in enumerate(offsets):
        x = panel.across.at(start)
        if number:
            panel.add(f'<path class="turn" d="M{x:.1f} {panel.up.stop}V{panel.up.start}"/>')
        if len(offsets) > 1:
            panel.text(x + 3, panel.up.stop - 6, f"{number}" if narrow else f"iteration {number}", "tick")
    ends = []
    for kind, _name, parts in lines:
        for points in parts:
            mean, low, high = _thinned(points, max(2, _POINTS * len(points) // max(total, 1)))
            panel.band(low, high, kind)
            panel.line(mean, kind)
            ends += [mean[-1]] if mean else []
    for points in looked:
        panel.line(points, "looked")
    panel.legend([(name, kind) for kind, name, _ in lines if name])
    says = ", ".join(f"{value:.3g}" for _, value in ends)
    return panel.picture(head, f"{head}: {total:,} steps in {len(offsets)} iterations, at the end of each {says}")


def _points(log: Sequence[Mapping[str, Any]], key: str, start: int) -> list[Point]:
    return [(start + line["step"], line[key]) for line in log if isinstance(line.get(key), int | float) and math.isfinite(line[key])]


def _thinned(points: Sequence[Point], count: int) -> tuple[list[Point], list[Point], list[Point]]:
    """At most `count` points: means, with the least and the most of each stretch where there is more than one point in it."""
    if len(points) <= count:
        return list(points), [], []
    edges = [round(i * len(points) / count) for i in range(count + 1)]
    mean, low, high = [], [], []
    for first, stop in itertools.pairwise(edges):
        part = points[first:stop]
        x, values = sum(x for x, _ in part) / len(part), [value for _, value in part]
        mean.append((x, sum(values) / len(values)))
        low.append((x, min(values)))
        high.append((x, max(values)))
    return mean, low, high


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
