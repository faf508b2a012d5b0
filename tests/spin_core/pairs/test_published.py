"""A campaign that goes on from an iteration which somebody published: its model, and its pairs carried over."""

import json
from pathlib import Path
from typing import Any

import pytest

from spin_core.campaign.ledger import Ledger
from spin_core.campaign.turn import TurnStages
from spin_core.contracts.rows import TRAIN_FILE
from spin_core.contracts.tables import read_rows
from spin_core.recipe import Recipe
from spin_core.runtime.errors import BadInput
from spin_core.runtime.launcher import Launcher
from spin_core.store import Ref, Store
from tests.stages import encode, import_model, reformat

ROWS, HELD_OUT = 12, 4


def turns(number: int, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": answer}]


def pair(number: int, **more: Any) -> str:
    return json.dumps({"real": turns(number, f"It is {number}."), "generated": turns(number, f"{number}, maybe")} | more)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Store, Recipe, Ref, Ref, Ref]:
    """A campaign over the `real` sides of pairs that lie in a file."""
    folder = tmp_path_factory.mktemp("published")
    lines = [pair(number) for number in range(ROWS)]
    lines[0] = pair(0, prompt_ids=[9], real_ids=[8, 2], generated_ids=[7, 2])  # tokens of another template
    (folder / "pairs.jsonl").write_text("\n".join(lines))
    file = str(folder / "pairs.jsonl")
    content = {"name": "c", "model": {"name": str(tiny_model)}, "data": {"name": file, "test_size": HELD_OUT}, "iterations": [{}, {}]}
    recipe = Recipe.model_validate(content | {"start_pairs": {"name": file}})
    store = Store(folder / "home")
    model, prompts = import_model(store, recipe.model), reformat(store, recipe.data)
    return store, recipe, model, prompts, encode(store, recipe, model, prompts)


def test_pairs_of_the_train_rows_are_carried_and_held_out_ones_are_not(world: tuple[Store, Recipe, Ref, Ref, Ref]) -> None:
    """A pair of a held-out row would train on what is reported; other tokens of a row's prompt would make its tree a wrong one."""
    store, recipe, model, _, encoded = world
    stage = TurnStages.of(recipe, 0, store.home).published(model, encoded)
    assert stage
    made = Launcher(store).build(stage)
    pairs = {row["row_id"]: row for row in read_rows(made.path / TRAIN_FILE)}
    wanted = {row["row_id"]: row for row in read_rows(encoded.path / "train.parquet")}
    assert pairs.keys() == wanted.keys()
    for row_id, found in pairs.items():
        assert (found["prompt_ids"], found["real_ids"]) == (wanted[row_id]["prompt_ids"], wanted[row_id]["real_ids"])
        assert found["iteration"] == -1
    assert made.facts["message"].endswith(f"left out: {HELD_OUT} of rows that this campaign does not train on")


def test_pairs_of_other_rows_are_one_line(world: tuple[Store, Recipe, Ref, Ref, Ref], tmp_path: Path) -> None:
    store, recipe, model, _, encoded = world
    (tmp_path / "others.jsonl").write_text(pair(100))
    others = recipe.model_copy(update={"start_pairs": recipe.start_pairs.model_copy(update={"name": str(tmp_path / "others.jsonl")})})  # type: ignore[union-attr]
    stage = TurnStages.of(others, 0, store.home).published(model, encoded)
    assert stage
    with pytest.raises(BadInput, match=r"none of the pairs of .*others.jsonl can be used \(1 of rows that .*set data.name"):
        Launcher(store).build(stage)
    assert not store.ref(stage.spec()).done


def test_a_recipe_without_them_is_as_before(world: tuple[Store, Recipe, Ref, Ref, Ref]) -> None:
    store, recipe, model, _, encoded = world
    plain = recipe.model_copy(update={"start_pairs": None})
    assert TurnStages.of(plain, 0, store.home).published(model, encoded) is None
    assert Ledger(store, "c").pinned(plain) == plain
