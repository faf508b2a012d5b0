"""Which artifacts of a home its campaigns need, and which nobody does. Looks only.

Needed is what a ledger's turns name, what a run of the campaign's recipe would look up, and what those are made from. A campaign that
is running, or whose recipe cannot be looked at here, keeps everything that is made from its model or its prompts: what it will look
up next may not have a name yet.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from spin_core.campaign.ledger import Ledger
from spin_core.campaign.survey import footprint
from spin_core.campaign.workspace import running
from spin_core.runtime.errors import SpinflowError
from spin_core.store import Ref, Store

_YOUNG_S = 3600.0  # a check or a plan may still be looking at what it made
_ROOTS = {"prompts", "model"}  # what every other artifact descends from
Key = tuple[str, str]  # kind, digest


@dataclass
class Need:
    """What a campaign needs, and why more than its ledger names."""

    named: set[Key] = field(default_factory=set)
    unfinished: set[Key] = field(default_factory=set)  # not made yet: what was left of them in work/ is gone on with
    roots: set[Key] = field(default_factory=set)  # everything that is made from these is needed
    everything: bool = False
    because: str = ""


@dataclass(frozen=True)
class Kept:
    """The artifacts of a home with who needs them."""

    sizes: Mapping[Key, int]  # bytes
    by_campaign: Mapping[str, set[Key]]
    reasons: Mapping[Key, str]  # of those that are kept though no campaign is known to need them
    work: set[Key]  # unfinished stages that a campaign would go on with

    def free(self) -> list[Key]:
        """What nobody needs, in order."""
        needed = set[Key]().union(*self.by_campaign.values(), self.reasons)
        return sorted(key for key in self.sizes if key not in needed)


def look(store: Store) -> Kept:
    """What is in a home and who needs it."""
    refs = {(ref.kind, ref.digest): ref for ref in store.all()}
    parents = {key: _parents(ref) for key, ref in refs.items()}
    needs = {name: _need(store, name) for name in store.campaigns()}
    children = defaultdict[Key, set[Key]](set)
    for key, above in parents.items():
        for parent in above:
            children[parent].add(key)
    by_campaign, reasons = dict[str, set[Key]](), dict[Key, str]()
    for name, need in needs.items():
        by_campaign[name] = _closed(need.named, parents) & parents.keys()
        more = parents.keys() if need.everything else _closed(need.roots, children) & parents.keys()
        reasons |= dict.fromkeys(_closed(more, parents) & parents.keys(), f"campaign {name} {need.because}")
    if builder := _stranger(store, needs):
        reasons |= dict.fromkeys(parents.keys() - reasons.keys(), f"{builder} is building something")
    for key in parents.keys() - reasons.keys():
        if time.time() - _made(refs[key]) < _YOUNG_S:
            reasons[key] = "made within the hour: a check or a plan may be at work with it"
    known = set[Key]().union(*by_campaign.values())
    work = {key for key in _work(store) if any(need.roots or need.everything or key in need.unfinished for need in needs.values())}
    sizes = {key: _size(ref) for key, ref in refs.items()}
    return Kept(sizes, by_campaign, {key: why for key, why in reasons.items() if key not in known}, work)


def size_of(path: Path) -> int:
    """Bytes of a folder's files; links count nothing."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file() and not file.is_symlink())


def _need(store: Store, name: str) -> Need:
    need, ledger = Need(), Ledger(store, name)
    if at_work := running(store, name):
        need.because = f"is at work in {at_work}"
    try:
        turns = ledger.turns()
        need.named = {(ref.kind, ref.digest) for turn in turns for found in turn.made for ref in turn.refs(found)}
        best = ledger.path.parent / "best"
        if best.is_symlink():
            need.named.add((best.resolve().parent.name, best.resolve().name))
        if not ledger.begun and not at_work:
            return need
        for ref in footprint(store, ledger.pinned(ledger.recipe(), begin=False)):
            (need.named if ref.done else need.unfinished).add((ref.kind, ref.digest))
    except (SpinflowError, OSError, ValueError, KeyError) as error:
        need.because = need.because or f"cannot be looked at: {' '.join(str(error).split())[:120]}"
    if need.because:
        need.roots = {key for key in need.named | need.unfinished if key[0] in _ROOTS}
        need.everything = not need.roots
    return need


def _stranger(store: Store, needs: Iterable[str]) -> str:
    """Who builds an artifact and is no run of a campaign; empty where nobody does."""
    known = {running(store, name).partition(" (")[0] for name in needs}
    strangers = (who for name, who in store.holders().items() if name != "broom" and who.partition(" (")[0] not in known)
    return next(strangers, "")


def _closed(start: Iterable[Key], edges: Mapping[Key, set[Key]]) -> set[Key]:
    """`start` and all that the edges lead to from there."""
    found, left = set[Key](), list(start)
    while left:
        key = left.pop()
        if key not in found:
            found.add(key)
            left += edges.get(key, ())
    return found


def _parents(ref: Ref) -> set[Key]:
    try:
        return {(parent["kind"], parent["digest"]) for parent in ref.manifest["parents"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()  # damaged, or removed meanwhile


def _made(ref: Ref) -> float:
    try:
        return ref.made
    except (OSError, ValueError, KeyError):
        return 0.0


def _size(ref: Ref) -> int:
    try:
        return ref.bytes
    except (OSError, ValueError, KeyError, TypeError):
        return size_of(ref.folder)


def _work(store: Store) -> Iterator[Key]:
    for name in store.works():
        kind, _, digest = name.rpartition("-")
        yield kind, digest
