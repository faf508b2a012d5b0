"""One turn of self-play: prompts → shards → pairs → scores → model → verdict. The order of the stages stands here, and only here.

The flow walks it and runs what is not done; `spinflow status` walks it and runs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from spin_core.campaign.turn import Shards, TurnStages
from spin_core.evaluation.stage import Side
from spin_core.generation.stage import Shard
from spin_core.runtime.launcher import Stage
from spin_core.store import Ref


class Builder(Protocol):
    """What happens at a stage. Names are those of the ledger."""

    def do(self, name: str, stage: Stage) -> Ref:
        """The stage's artifact."""
        ...

    def sample(self, name: str, shards: Sequence[Shard]) -> Shards:
        """The shards' artifacts."""
        ...

    def free_devices(self) -> None:
        """Ends the engines: what comes needs what they hold."""
        ...


@dataclass(frozen=True)
class Player:
    """θ_t and all that was found of it."""

    number: int  # t
    model: Ref
    answers: Mapping[str, Shards]  # to held-out prompts by split: one each, which the game is played with
    more: Mapping[str, Shards]  # the other ones
    judged: tuple[Ref, ...] = ()  # by every evaluator

    @property
    def all_answers(self) -> dict[str, Shards]:
        """By split."""
        return {split: (*first, *self.more[split]) for split, first in self.answers.items()}


@dataclass(frozen=True)
class Played:
    """A campaign so far: θ_0, θ_1, …, and each iteration's own pairs with those that it carried."""

    players: tuple[Player, ...] = ()
    pairs: tuple[Ref, ...] = ()  # published ones that the campaign began with come first
    made: Mapping[str, Ref | Shards] = field(default_factory=dict)  # of the last iteration, for the ledger


def walk(turn: TurnStages, on: Builder, before: Played, opponent: int) -> Played:
    """θ_`opponent` answers, the next player learns to tell its answers from the human ones, both are compared."""
    made: dict[str, Any] = {}

    def do(name: str, stage: Stage) -> Ref:
        made[name] = ref = on.do(name, stage)
        return ref

    prompts = do("prompts", turn.prompts())  # bad data is found sooner than a model is loaded
    start = do("base" if turn.recipe.sft else "start", turn.start())
    encoded = do("encoded", turn.encoded(start, prompts))
    earlier = before.pairs
    if not earlier and (published := turn.published(start, encoded)):
        earlier = (do("start_pairs", published),)
    if warm := turn.warm(start, encoded):
        start = do("start", warm)
    old = before.players[opponent] if before.players else _answered(turn, on, 0, start, encoded)
    origin = turn.origin(start, old.model)

    train = on.sample("train_shards", turn.train_shards(old.model, encoded))
    on.free_devices()
    pairs = do("pairs", turn.pairs(prompts, encoded, train, old.answers, earlier))
    reference = do("reference", turn.reference(origin, old.model, pairs))
    held_out = reference if origin == old.model else do("held_out", turn.held_out(old.model, pairs))
    trained = do("trained" if turn.chooses else "model", turn.player(origin, pairs, reference))
    model = do("model", turn.choice(old.model, trained, encoded, prompts)) if turn.chooses else trained
    scored = do("scored", turn.held_out(model, pairs))
    new = _answered(turn, on, turn.iteration + 1, model, encoded, "new_")  # these engines stay up for the next turn

    def judged(player: Player, scores: Ref, name: str) -> Player:
        judges = turn.judges(player.number, player.model, prompts, player.all_answers, pairs, scores)
        return replace(player, judged=tuple(do(f"{name}-{judge.name}", judge) for judge in judges))

    players = before.players or (judged(old, held_out, "start-judged"),)
    old, new = players[opponent], judged(new, scored, "judged")
    was, now = (Side(player.judged, scores, player.answers["test"]) for player, scores in ((old, held_out), (new, scored)))
    others = [(player.number, player.answers) for player in ((old, players[0]) if old.number else (old,))]
    duels = tuple(do(f"duel-{duel.old}", duel) for duel in turn.duels(prompts, (new.number, new.answers), others))
    do("evaluation", turn.verdict(pairs, reference, players[0].judged, was, now, duels))
    made |= {"opponent": old.model, "train_shards": train}
    for name, player in (("", old), ("new_", new)):
        for split in player.answers:
            made |= {f"{name}{split}_shards": player.answers[split], f"{name}more_{split}_shards": player.more[split]}
    return Played((*players, new), (*earlier, pairs), made)


def _answered(turn: TurnStages, on: Builder, number: int, model: Ref, encoded: Ref, name: str = "") -> Player:
    """A player with its answers to all held-out prompts."""
    answers, more = {}, {}
    for split in turn.held_out_splits:
        answers[split] = on.sample(f"{name}{split}_shards", turn.held_out_shards(number, model, encoded, split))
        wanted = turn.held_out_shards(number, model, encoded, split, more=True)
        more[split] = on.sample(f"{name}more_{split}_shards", wanted) if wanted else ()
    return Player(number, model, answers, more)
