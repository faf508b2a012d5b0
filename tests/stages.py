"""Stages by hand, for tests and benches: each builds one with a recipe's settings on this machine and returns its artifact."""

from collections.abc import Sequence

from flows.session import Session
from spin_core.campaign.ledger import Ledger
from spin_core.encoding.stage import Encode
from spin_core.generation.pool import EnginePool
from spin_core.generation.stage import Shard
from spin_core.pairs.stage import Gather
from spin_core.players.stage import Import
from spin_core.recipe import DataSettings, ModelSettings, Recipe
from spin_core.runtime.launcher import Launcher
from spin_core.scoring.stage import Score
from spin_core.sources.stage import Prompts
from spin_core.store import Ref, Store
from spin_core.training.stage import Train


def session_of(store: Store, recipe: Recipe, pool: EnginePool) -> Session:
    return Session(store, recipe, recipe, Ledger(store, recipe.name), Launcher(store, recipe.name, pool))


def import_model(store: Store, settings: ModelSettings) -> Ref:
    return Launcher(store).build(Import(settings, store.home))


def reformat(store: Store, settings: DataSettings) -> Ref:
    return Launcher(store).build(Prompts(settings, store.home))


def encode(store: Store, recipe: Recipe, model: Ref, prompts: Ref) -> Ref:
    return Launcher(store).build(Encode.of(recipe, model, prompts))


def generate(store: Store, shard: Shard, pool: EnginePool) -> Ref:
    return Launcher(store, engines=pool).build(shard)


def join(
    store: Store,
    iteration: int,
    prompts: Ref,
    encoded: Ref,
    train: Sequence[Ref],
    test: Sequence[Ref],
    carried: Sequence[Ref] = (),
    keep_identical: bool = False,
) -> Ref:
    return Launcher(store).build(Gather(iteration, prompts, encoded, tuple(train), tuple(test), tuple(carried), keep_identical))


def score(store: Store, recipe: Recipe, model: Ref, pairs: Ref, splits: tuple[str, ...] = ("train", "test")) -> Ref:
    return Launcher(store).build(Score(recipe.training, model, pairs, splits=splits))


def finetune(store: Store, recipe: Recipe, iteration: int, model: Ref, pairs: Ref, reference: Ref) -> Ref:
    return Launcher(store).build(Train(recipe.at(iteration).training, model, pairs, reference, f"iter-{iteration}"))
