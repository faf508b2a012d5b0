"""When each stage of an iteration ran, how long it waited, and what was found done: from the artifacts' manifests."""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spin_core.campaign.ledger import Turn
from spin_core.store import Ref

_GAP_S = 60.0  # a pause that is longer is not drawn to scale
_GAP = 0.03  # of the whole, that such a pause takes
_SPLITS = {"train": "train prompts", "test": "held-out prompts", "validation": "validation prompts"}
_NAMES = {
    "prompts": "read the data",
    "base": "load the base model",
    "start": "make θ_0",
    "encoded": "tokenise",
    "pairs": "gather pairs",
    "reference": "score the pairs",
    "held_out": "score held-out pairs",
    "trained": "train",
    "scored": "score held-out pairs, new model",
    "evaluation": "evaluate",
}


@dataclass(frozen=True)
class Ran:
    """One stage, or several of a kind that ran side by side; times in seconds since 1970."""

    name: str
    begun: float
    worked: float  # since when it had what it waited for: a device, or an engine that had to start
    ended: float
    says: str  # its speed, or what came out
    campaign: str = ""  # another one that it was made for

    @property
    def seconds(self) -> float:
        """From begin to end."""
        return self.ended - self.begun


@dataclass(frozen=True)
class Bar:
    """A stage on the axis of its iteration: shares of its width."""

    ran: Ran
    left: float
    wait: float
    work: float


@dataclass(frozen=True)
class Iteration:
    """What happened in an iteration."""

    number: int
    bars: Sequence[Bar]
    found: Sequence[str]  # stages whose artifacts an earlier iteration had made
    shared: Sequence[Ran]  # made for another campaign
    seconds: float  # with work, pauses left out
    pauses: float


def timeline(turns: Sequence[Turn], campaign: str) -> list[Iteration]:
    """An iteration a turn."""
    seen: set[str] = set()
    found = []
    for turn in turns:
        stages = list(_stages(turn))
        new = [(name, [ref for ref in refs if ref.digest not in seen]) for name, refs in stages]
        seen |= {ref.digest for _, refs in stages for ref in refs}
        ran = [_ran(name, refs, campaign) for name, refs in new if refs]
        own = sorted((one for one in ran if not one.campaign), key=lambda one: one.ended)
        reused = [name for (name, _), (_, refs) in zip(stages, new, strict=True) if not refs]
        bars, seconds, pauses = _laid_out(own)
        found.append(Iteration(turn.iteration, bars, reused, [one for one in ran if one.campaign], seconds, pauses))
    return found


def _stages(turn: Turn) -> Iterator[tuple[str, list[Ref]]]:
    """Names for people, with what was made: evaluators of one player together, and the shards of a sampler."""
    together: dict[str, list[Ref]] = {}
    for name in turn.made:
        if name != "opponent":
            together.setdefault(_named(name, turn), []).extend(turn.refs(name))
    yield from ((name, refs) for name, refs in together.items() if refs)


def _named(name: str, turn: Turn) -> str:
    if name.startswith("duel-"):
        return "ask the judge"
    if "judged-" in name:
        return f"judge θ_{0 if name.startswith('start') else turn.iteration + 1}"
    if name.endswith("_shards"):
        new, rest = name.startswith("new_"), name.removeprefix("new_").removesuffix("_shards").removeprefix("more_")
        return f"θ_{turn.iteration + 1 if new else turn.opponent} answers {_SPLITS.get(rest, rest)}"
    if name == "model":
        return "choose" if "trained" in turn.made else "train"
    return _NAMES.get(name, name)


def _ran(name: str, refs: Sequence[Ref], campaign: str) -> Ran:
    manifests = [ref.manifest for ref in refs]
    spans = [_span(manifest, ref.made) for manifest, ref in zip(manifests, refs, strict=True)]
    begun, worked, ended = min(span[0] for span in spans), min(span[1] for span in spans), max(span[2] for span in spans)
    made_for = {manifest["facts"].get("campaign", campaign) for manifest in manifests} - {campaign}
    says = _says([manifest["facts"] for manifest in manifests], ended - worked)
    return Ran(name, begun, worked, ended, says, ", ".join(sorted(made_for)))


def _span(manifest: Mapping[str, Any], written: float) -> tuple[float, float, float]:
    """Begin, begin of work, end. A manifest says its time in whole seconds; its file's is finer, if it is still the first one."""
    facts, created = manifest["facts"], float(calendar.timegm(time.strptime(manifest["created"], "%Y-%m-%dT%H:%M:%SZ")))
    ended = facts.get("ended", written if 0 <= written - created < 2 else created)
    begun = ended - facts["seconds"]
    worked = facts["started"] if "started" in facts else begun + facts.get("waited", 0.0)
    return begun, min(max(begun, worked), ended), ended


def _says(facts: Sequence[Mapping[str, Any]], seconds: float) -> str:
    first = facts[0]
    if "tokens" in first and "started" in first:
        tokens = sum(one["tokens"] for one in facts)
        shards = f" in {len(facts)} shards" if len(facts) > 1 else ""
        return f"{tokens:,} tokens{shards}, {tokens / max(seconds, 1e-9):,.0f} a second"
    if "steps" in first:
        return f"{first['steps']} steps, {first['pairs_per_s']:.2f} pairs a second, β {first['beta']:.3g}"
    if "pairs_per_s" in first:
        return f"{first['pairs_per_s']:.1f} pairs a second"
    return str(first.get("message") or (f"{len(facts)} evaluators" if len(facts) > 1 else ""))


def _laid_out(stages: Sequence[Ran]) -> tuple[list[Bar], float, float]:
    """Bars on an axis from the first begin to the last end, long pauses shortened; seconds with and without work."""
    if not stages:
        return [], 0.0, 0.0
    busy: list[list[float]] = []  # stretches with work
    for one in sorted(stages, key=lambda one: one.begun):
        if busy and one.begun <= busy[-1][1] + _GAP_S:
            busy[-1][1] = max(busy[-1][1], one.ended)
        else:
            busy.append([one.begun, one.ended])
    worked = sum(stop - start for start, stop in busy) or 1.0
    scale = (1.0 - _GAP * (len(busy) - 1)) / worked

    def at(moment: float) -> float:
        place = 0.0
        for start, stop in busy:
            if moment <= stop:
                return place + scale * (moment - start)
            place += scale * (stop - start) + _GAP
        return 1.0

    bars = [Bar(one, at(one.begun), at(one.worked) - at(one.begun), at(one.ended) - at(one.worked)) for one in stages]
    return bars, worked, busy[-1][1] - busy[0][0] - worked


def duration(seconds: float) -> str:
    """For people: 8.2 s, 3:05 min, 2:10 h."""
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02} h"
