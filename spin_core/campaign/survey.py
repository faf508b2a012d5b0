"""What of a recipe is done, what would run, and why again: the stages' specs against the store, nothing run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spin_core.campaign.ledger import Ledger, Turn
from spin_core.campaign.rules import Outcome, end_of, next_opponent
from spin_core.campaign.turn import TurnStages
from spin_core.campaign.walk import Played, walk
from spin_core.generation.stage import Shard
from spin_core.recipe import Recipe
from spin_core.runtime.launcher import Stage
from spin_core.selection.stage import nothing_won
from spin_core.store import Ref, Spec, Store


@dataclass(frozen=True)
class Line:
    """One stage of an iteration."""

    iteration: int
    stage: str
    done: bool
    why: str = ""  # it would run, where the campaign has an artifact of this name already


def survey(store: Store, recipe: Recipe) -> Iterator[Line]:
    """A line a stage, in the order in which they run; an iteration's shards are one. Ends where what would come cannot be named yet."""
    for look in _looks(store, recipe):
        yield from look.lines


def footprint(store: Store, recipe: Recipe) -> Iterator[Ref]:
    """Every artifact that a run of this recipe would look up or make, as far as they can be named now."""
    for look in _looks(store, recipe):
        yield from look.refs


def _looks(store: Store, recipe: Recipe) -> Iterator[_Look]:
    """What is seen of each iteration."""
    turns = {turn.iteration: turn for turn in Ledger(store, recipe.name).turns()}
    before, outcomes = Played(), list[Outcome]()
    for iteration in range(len(recipe.iterations)):
        look = _Look(store, TurnStages.of(recipe, iteration, store.home), turns.get(iteration))
        opponent = next_opponent(outcomes, recipe.stop)
        try:
            before = walk(look.stages, look, before, opponent)
        except _NotNamed:
            yield look
            return
        yield look
        verdict = before.made["evaluation"]
        assert isinstance(verdict, Ref)
        if not verdict.done:  # it says whom the next turn starts from
            return
        metrics = json.loads((verdict.path / "metrics.json").read_text())
        outcomes.append(Outcome(opponent, metrics, nothing_won(before.players[-1].model)))
        if end_of(outcomes, recipe.stop):
            return


class _NotNamed(Exception):
    """What comes depends on what is not there."""


class _Look:
    """A builder that only looks."""

    def __init__(self, store: Store, stages: TurnStages, turn: Turn | None) -> None:
        self._store, self.stages, self._turn = store, stages, turn
        self.lines: list[Line] = []
        self.refs: list[Ref] = []

    def do(self, name: str, stage: Stage) -> Ref:
        """See `Builder`: what would be made. Raises _NotNamed where without it nothing that comes has a name."""
        spec = stage.spec()
        ref = self._store.ref(spec)
        self.refs.append(ref)
        self.lines.append(Line(self.stages.iteration, name, ref.done, "" if ref.done else self._why(name, spec)))
        if name == "encoded" and not ref.done:
            names = ("answers", "pairs", "reference", *(["trained"] if self.stages.chooses else []), "model", "evaluation")
            self.lines += [Line(self.stages.iteration, name, False) for name in names]
            raise _NotNamed
        return ref

    def sample(self, name: str, shards: Sequence[Shard]) -> tuple[Ref, ...]:
        """See `Builder`."""
        specs = [shard.spec() for shard in shards]
        refs = tuple(map(self._store.ref, specs))
        self.refs += refs
        left = [spec for spec, ref in zip(specs, refs, strict=True) if not ref.done]
        why = self._why(name, left[0]) if left else ""
        counted = f"{len(left)} of {len(refs)} shards" if left else ""
        says = ", ".join(filter(None, (counted, why)))
        self.lines.append(Line(self.stages.iteration, f"{name.removesuffix('_shards').replace('_', ' ')} answers", not left, says))
        return refs

    def free_devices(self) -> None:
        """Nothing holds one."""

    def _why(self, name: str, spec: Spec) -> str:
        """Which keys of the recipe make it another artifact than the one that the campaign has."""
        name = self._noted(name)
        if self._turn is None or name not in self._turn.made:
            return ""
        if not (found := self._turn.refs(name)):
            return ""
        old = found[0]
        if not old.done:
            return "again, because it was removed"
        manifest = old.manifest
        if manifest["version"] != spec.version:
            return "again, because this version of spinflow makes it otherwise"
        changed = list(_differences(manifest["spec"], dict(spec.params)))
        if changed:
            return f"again, because {', '.join(changed)} changed"
        return "again, because a stage before it would run again"

    def _noted(self, name: str) -> str:
        """What the ledger calls it: what was trained is the model of a turn in which nothing was chosen."""
        if self._turn and name in _TRAINING and ("trained" in self._turn.made) != self.stages.chooses:
            return _TRAINING[name]
        return name


_TRAINING = {"trained": "model", "model": "trained"}


def _differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif old != new:
        yield at
