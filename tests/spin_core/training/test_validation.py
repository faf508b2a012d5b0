"""Looks at validation pairs in training, through the real child."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from spin_core.contracts.rows import PAIRS, PAIRS_OF, SCORES_OF, TRAIN_FILE
from spin_core.contracts.tables import read_rows, write_rows
from spin_core.recipe import ModelSettings, Recipe, TrainingSettings
from spin_core.scoring.scores import read_scores
from spin_core.store import Ref, Spec, Store
from spin_core.training.stage import Train
from tests.spin_core.training.test_training import make_pairs, recipe_for, steps
from tests.stages import finetune, import_model, score

World = tuple[Store, Ref, Ref, Ref]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> World:
    """The validation pairs are the train pairs with their sides changed, so that every step makes them worse."""
    store = Store(tmp_path_factory.mktemp("home"))
    model, train = import_model(store, ModelSettings(name=str(tiny_model))), make_pairs(store, 16)

    def write(out: Path) -> None:
        for file in train.path.glob("*.parquet"):
            shutil.copy(file, out)
        turned = [row | {"real_ids": row["generated_ids"], "generated_ids": row["real_ids"]} for row in read_rows(train.path / TRAIN_FILE)]
        write_rows(out / PAIRS_OF["validation"], turned, PAIRS)

    pairs = store.build(Spec("pairs", 1, {"turned": True}), write)
    return store, model, pairs, score(store, recipe_for(tiny_model), model, pairs, ("train", "test", "validation"))


def train(world: World, tiny_model: Path, **training: Any) -> Ref:
    store, *parents = world
    return finetune(store, recipe_for(tiny_model, beta=0.1, pairs_per_step=4, **training), 0, *parents)


def looks(model: Ref) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (model.path / "validation.jsonl").read_text().splitlines()]


def loss_under(world: World, tiny_model: Path, model: Ref) -> float:
    """−log σ(β · margin) of the validation pairs, by the scorer."""
    store, _, pairs, reference = world
    scored = score(store, recipe_for(tiny_model), model, pairs, ("validation",))
    file = pairs.path / PAIRS_OF["validation"]
    new, old = (read_scores(ref.path / SCORES_OF["validation"], file).to_pylist() for ref in (scored, reference))
    margins = [
        0.1 * ((a["real_logp"] - b["real_logp"]) - (a["generated_logp"] - b["generated_logp"])) for a, b in zip(new, old, strict=True)
    ]
    return sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins)


def test_looks_change_nothing_and_tell_the_loss(world: World, tiny_model: Path) -> None:
    found = train(world, tiny_model, validate_steps=2)
    assert [look["step"] for look in looks(found)] == [2, 4]
    assert looks(found)[-1]["loss"] == pytest.approx(loss_under(world, tiny_model, found), abs=1e-4)
    assert looks(found)[0]["loss"] < looks(found)[1]["loss"]
    assert looks(found)[1]["margin"] < 0
    _, *parents = world
    plain, looked = (
        Train(TrainingSettings.model_validate({"beta": 0.1} | keys), *parents).spec().digest for keys in ({}, {"validate_steps": 2})
    )
    assert plain == looked


def test_training_ends_where_validation_says_so_with_its_best_model(world: World, tiny_model: Path) -> None:
    found = train(world, tiny_model, validate_steps=1, early_stop=2)
    assert [line["step"] for line in steps(found)] == [1, 2, 3]  # of four; the first look is the best one
    losses = [look["loss"] for look in looks(found)]
    assert losses == sorted(losses)
    assert loss_under(world, tiny_model, found) == pytest.approx(losses[0], abs=1e-4)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"training": {"early_stop": 2}}, "set validate_steps"),
        ({"training": {"validate_steps": 5}}, r"set data\.validation_size"),
        ({"training": {"validate_steps": 5, "start": "initial"}}, "works with start: previous"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Recipe.model_validate({"name": "c", "model": {"name": "m"}, "data": {"name": "demo"}} | keys)
