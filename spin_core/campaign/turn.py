"""One iteration of a recipe as stages: which settings and parents each gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spin_core.contracts.rows import HELD_OUT
from spin_core.encoding.stage import Encode
from spin_core.evaluation.stage import Evaluate, Side
from spin_core.generation.stage import Shard, shards
from spin_core.judging.duel import Duel
from spin_core.judging.harness import Harness
from spin_core.judging.stage import Judge
from spin_core.pairs.published import Published
from spin_core.pairs.stage import Gather
from spin_core.players.stage import Import
from spin_core.recipe import Recipe
from spin_core.scoring.stage import Score
from spin_core.selection.stage import Choose
from spin_core.sft.stage import Warm
from spin_core.sources.stage import Prompts
from spin_core.store import Ref
from spin_core.training.stage import Train

Shards = tuple[Ref, ...]
Answered = tuple[int, Mapping[str, Shards]]


@dataclass(frozen=True)
class TurnStages:
    """The stages of iteration t; each method takes what the stage is made from. Nothing runs here."""

    recipe: Recipe  # of this iteration, see `Recipe.at`
    iteration: int
    home: Path
    steps_before: int = 0  # that iterations before trained, for people

    @classmethod
    def of(cls, recipe: Recipe, iteration: int, home: Path, steps_before: int = 0) -> TurnStages:
        """The stages of one iteration of a whole recipe."""
        return cls(recipe.at(iteration), iteration, home, steps_before)

    @property
    def label(self) -> str:
        """The turn for people."""
        return f"iter-{self.iteration}"

    def start(self) -> Import:
        """The recipe's model, which every iteration's tokenizer comes from: θ_0, or what SFT makes θ_0 of."""
        return Import(self.recipe.model, self.home)

    def prompts(self) -> Prompts:
        """Conversations to train on and held-out ones."""
        return Prompts(self.recipe.data, self.home)

    def encoded(self, start: Ref, prompts: Ref) -> Encode:
        """Their token ids."""
        return Encode.of(self.recipe, start, prompts)

    def published(self, start: Ref, encoded: Ref) -> Published | None:
        """The pairs of the iteration before the first, where the recipe goes on from a published one."""
        return Published.of(self.recipe, start, encoded, self.home)

    def warm(self, base: Ref, encoded: Ref) -> Warm | None:
        """θ_0 made of the base model by SFT, where the recipe wants it."""
        training = self.recipe.training
        return Warm(self.recipe.sft, training.precision, training.sharding, base, encoded) if self.recipe.sft else None

    @property
    def held_out_splits(self) -> tuple[str, ...]:
        """What every player answers: the rows that are reported, and those that choices are made on where there are any."""
        return HELD_OUT if self.recipe.data.validation_size else HELD_OUT[:1]

    def train_shards(self, opponent: Ref, encoded: Ref, total: int | None = None) -> list[Shard]:
        """The opponent's answers to the prompts that are trained on, drawn anew each iteration."""
        return shards(self.recipe, opponent, encoded, "train", self.label, total, self.iteration)

    def held_out_shards(
        self, number: int, model: Ref, encoded: Ref, split: str, more: bool = False, total: int | None = None
    ) -> list[Shard]:
        """Answers of θ_`number` to held-out prompts: one each that the game is played with, or all the other ones."""
        return shards(self.recipe, model, encoded, split, self.label, total, number, more)

    def pairs(self, prompts: Ref, encoded: Ref, train: Shards, held_out: Mapping[str, Shards], before: Sequence[Ref]) -> Gather:
        """Human and sampled answers; `before` are the pairs of all earlier iterations, in order."""
        depth = len(before) if self.recipe.training.start == "initial" else self.recipe.carry_over
        carried, keep = tuple(reversed(before))[:depth], self.recipe.training.keeps_identical
        return Gather(self.iteration, prompts, encoded, train, held_out["test"], carried, keep, held_out.get("validation", ()))

    def origin(self, start: Ref, opponent: Ref) -> Ref:
        """The model that training starts from: θ_t, or θ_0 anew."""
        return start if self.recipe.training.start == "initial" else opponent

    def reference(self, origin: Ref, opponent: Ref, pairs: Ref) -> Score:
        """The pairs under the model that training starts from; the held-out ones only where that is θ_t."""
        return Score(self.recipe.training, origin, pairs, self.label, ("train", *(self.held_out_splits if origin == opponent else ())))

    def player(self, origin: Ref, pairs: Ref, reference: Ref) -> Train:
        """The trained model: θ_{t+1} where nothing is chosen."""
        return Train(self.recipe.training, origin, pairs, reference, self.label, self.steps_before)

    @property
    def chooses(self) -> bool:
        """Whether θ_{t+1} is chosen on validation rows."""
        return self.recipe.training.chooses

    def choice(self, opponent: Ref, trained: Ref, encoded: Ref, prompts: Ref) -> Choose:
        """θ_{t+1}, chosen from what lies between θ_t and the trained model."""
        return Choose(self.recipe.training, opponent, trained, encoded, prompts, self.label)

    def held_out(self, player: Ref, pairs: Ref) -> Score:
        """The held-out pairs under θ_{t+1}, or under θ_t where the reference is another model."""
        return Score(self.recipe.training, player, pairs, self.label, self.held_out_splits)

    def judges(
        self, number: int, model: Ref, prompts: Ref, answers: Mapping[str, Shards], pairs: Ref, scored: Ref
    ) -> list[Judge | Harness]:
        """What each evaluator finds of θ_`number`; `answers` are all of its held-out ones, `scored` its log-probs of the pairs'."""
        settings = self.recipe.evaluation
        wanted = dict.fromkeys((*settings.evaluators, *settings.custom))
        found: list[Judge | Harness] = [Judge(name, number, prompts, answers, pairs, scored, self.label) for name in wanted]
        if settings.harness:
            found.append(Harness(settings.harness, self.recipe.generation, number, model, self.held_out_splits, self.label))
        return found

    def duels(self, prompts: Ref, new: Answered, others: Sequence[Answered]) -> list[Duel]:
        """A judge's comparisons of the new player, where the recipe names one; each other one is (t, its first answers by split)."""
        judge = self.recipe.evaluation.judge
        return [Duel(judge, new[0], old[0], prompts, new[1], old[1], self.label) for old in others] if judge else []

    def verdict(self, pairs: Ref, reference: Ref, start: tuple[Ref, ...], before: Side, after: Side, duels: tuple[Ref, ...]) -> Evaluate:
        """What the turn won; `start` is what θ_0 was judged to be, `duels` are against the opponent and θ_0."""
        return Evaluate(self.recipe.evaluation, self.iteration, self.recipe.training.beta, pairs, reference, start, before, after, duels)
