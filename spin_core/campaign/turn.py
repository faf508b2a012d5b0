"""One iteration of a recipe as stages: which settings and parents each gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spin_core.encoding.stage import Encode
from spin_core.evaluation.stage import Evaluate
from spin_core.generation.stage import Shard, shards
from spin_core.pairs.stage import Gather
from spin_core.players.stage import Import
from spin_core.recipe import Recipe
from spin_core.scoring.stage import Score
from spin_core.selection.stage import Choose
from spin_core.sources.stage import Prompts
from spin_core.store import Ref
from spin_core.training.stage import Train


@dataclass(frozen=True)
class TurnStages:
    """The stages of iteration t; each method takes what the stage is made from. Nothing runs here."""

    recipe: Recipe  # of this iteration, see `Recipe.at`
    iteration: int
    home: Path

    @classmethod
    def of(cls, recipe: Recipe, iteration: int, home: Path) -> TurnStages:
        """The stages of one iteration of a whole recipe."""
        return cls(recipe.at(iteration), iteration, home)

    @property
    def label(self) -> str:
        """The turn for people."""
        return f"iter-{self.iteration}"

    def start(self) -> Import:
        """θ_0, which every iteration's tokenizer comes from."""
        return Import(self.recipe.model, self.home)

    def prompts(self) -> Prompts:
        """Conversations to train on and held-out ones."""
        return Prompts(self.recipe.data, self.home)

    def encoded(self, start: Ref, prompts: Ref) -> Encode:
        """Their token ids."""
        return Encode.of(self.recipe, start, prompts)

    def shards(self, player: Ref, encoded: Ref, split: str, total: int | None = None) -> list[Shard]:
        """The opponent's answers to the prompts of a split."""
        return shards(self.recipe, player, encoded, split, self.label, total, self.iteration)

    def new_shards(self, player: Ref, encoded: Ref, total: int | None = None) -> list[Shard]:
        """The new player's answers to the held-out prompts: those that the next turn asks of it as the opponent."""
        return shards(self.recipe, player, encoded, "test", self.label, total, self.iteration + 1)

    def pairs(self, prompts: Ref, encoded: Ref, train: tuple[Ref, ...], test: tuple[Ref, ...], before: Sequence[Ref]) -> Gather:
        """Human and sampled answers; `before` are the pairs of all earlier iterations, in order."""
        depth = len(before) if self.recipe.training.start == "initial" else self.recipe.carry_over
        carried = tuple(reversed(before))[:depth]
        return Gather(self.iteration, prompts, encoded, train, test, carried, self.recipe.training.keeps_identical)

    def origin(self, start: Ref, opponent: Ref) -> Ref:
        """The model that training starts from: θ_t, or θ_0 anew."""
        return start if self.recipe.training.start == "initial" else opponent

    def reference(self, origin: Ref, opponent: Ref, pairs: Ref) -> Score:
        """The pairs under the model that training starts from; the held-out ones only where that is θ_t."""
        return Score(self.recipe.training, origin, pairs, self.label, ("train", "test") if origin == opponent else ("train",))

    def player(self, origin: Ref, pairs: Ref, reference: Ref) -> Train:
        """The trained model: θ_{t+1} where nothing is chosen."""
        return Train(self.recipe.training, origin, pairs, reference, self.label, f"{self.recipe.name}-{self.label}")

    @property
    def chooses(self) -> bool:
        """Whether θ_{t+1} is chosen on validation rows."""
        return self.recipe.training.chooses

    def choice(self, opponent: Ref, trained: Ref, encoded: Ref) -> Choose:
        """θ_{t+1}, chosen from what lies between θ_t and the trained model."""
        return Choose(self.recipe.training, opponent, trained, encoded, self.label)

    def held_out(self, player: Ref, pairs: Ref) -> Score:
        """The held-out pairs under θ_{t+1}, or under θ_t where the reference is another model."""
        return Score(self.recipe.training, player, pairs, self.label, ("test",))

    def verdict(self, pairs: Ref, reference: Ref, before: Ref, scored: Ref, old: tuple[Ref, ...], new: tuple[Ref, ...]) -> Evaluate:
        """What the turn won; `before` has the held-out scores under θ_t."""
        return Evaluate(self.recipe.evaluation, self.iteration, self.recipe.training.beta, pairs, reference, before, scored, old, new)
