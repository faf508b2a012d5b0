"""What of a recipe is done, what would run, and why again: the stages' specs against the store, nothing run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from spin_core.campaign.ledger import Ledger, Turn
from spin_core.campaign.turn import TurnStages
from spin_core.recipe import Recipe
from spin_core.runtime.launcher import Stage
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
    turns = {turn.iteration: turn for turn in Ledger(store, recipe.name).turns()}
    before: tuple[Ref, tuple[Ref, ...]] | None = None
    for iteration in range(len(recipe.iterations)):
        look = _Look(store, TurnStages.of(recipe, iteration, store.home), turns.get(iteration))
        before = look.walk(before)
        yield from look.lines
        if before is None:
            return


class _Look:
    def __init__(self, store: Store, stages: TurnStages, turn: Turn | None) -> None:
        self._store, self._stages, self._turn = store, stages, turn
        self.lines: list[Line] = []

    def walk(self, before: tuple[Ref, tuple[Ref, ...]] | None) -> tuple[Ref, tuple[Ref, ...]] | None:
        """Looks at one iteration; returns its model and all pairs so far, or None where their names depend on what is not there."""
        stages = self._stages
        start, prompts = self._see("start", stages.start()), self._see("prompts", stages.prompts())
        encoded = self._see("encoded", stages.encoded(start, prompts))
        if not encoded.done:
            names = ("answers", "pairs", "reference", *(["trained"] if stages.chooses else []), "model", "evaluation")
            self.lines += [Line(stages.iteration, name, False) for name in names]
            return None
        opponent, earlier = before or (start, ())
        origin = stages.origin(start, opponent)
        test, train = (self._see_all(name, stages.shards(opponent, encoded, name)) for name in ("test", "train"))
        pairs = self._see("pairs", stages.pairs(prompts, encoded, train, test, earlier))
        reference = self._see("reference", stages.reference(origin, opponent, pairs))
        held_out = reference if origin == opponent else self._see("held_out", stages.held_out(opponent, pairs))
        trained = self._see("trained" if stages.chooses else "model", stages.player(origin, pairs, reference))
        player = self._see("model", stages.choice(opponent, trained, encoded)) if stages.chooses else trained
        scored = self._see("scored", stages.held_out(player, pairs))
        new = self._see_all("new", stages.new_shards(player, encoded))
        self._see("evaluation", stages.verdict(pairs, reference, held_out, scored, test, new))
        return player, (*earlier, pairs)

    def _see(self, name: str, stage: Stage) -> Ref:
        spec = stage.spec()
        ref = self._store.ref(spec)
        self.lines.append(Line(self._stages.iteration, name, ref.done, "" if ref.done else self._why(name, spec)))
        return ref

    def _see_all(self, name: str, stages: list[Any]) -> tuple[Ref, ...]:
        specs = [stage.spec() for stage in stages]
        refs = tuple(map(self._store.ref, specs))
        left = [spec for spec, ref in zip(specs, refs, strict=True) if not ref.done]
        why = self._why(f"{name}_shards", left[0]) if left else ""
        counted = f"{len(left)} of {len(refs)} shards" if left else ""
        self.lines.append(Line(self._stages.iteration, f"{name} answers", not left, ", ".join(filter(None, (counted, why)))))
        return refs

    def _why(self, name: str, spec: Spec) -> str:
        """Which keys of the recipe make it another artifact than the one that the campaign has."""
        name = self._noted(name)
        if self._turn is None or name not in self._turn.made:
            return ""
        old = self._turn.refs(name)[0]
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
        if self._turn and name in _TRAINING and ("trained" in self._turn.made) != self._stages.chooses:
            return _TRAINING[name]
        return name


_TRAINING = {"trained": "model", "model": "trained"}


def _differences(old: Any, new: Any, at: str = "") -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
    elif old != new:
        yield at
