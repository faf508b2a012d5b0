"""Campaigns that share their beginning."""

from pathlib import Path

import pytest

from spin_core.campaign.branch import branch
from spin_core.campaign.ledger import Ledger
from spin_core.recipe import load_recipe
from spin_core.runtime.errors import BadInput
from spin_core.store import Store
from tests.spin_core.campaign.test_survey import play, recipe, said


def test_what_comes_before_is_shared(tmp_path: Path, tiny_model: Path) -> None:
    """And only that: no stage of the shared iterations runs again, every one that depends on the change does."""
    store, old = Store(tmp_path), recipe(tiny_model, iterations=[{}, {"beta": 0.3}, {}], generation={"shard_rows": 2, "temperature": 0.9})
    play(store, old, play(store, old))
    file = tmp_path / "other.yaml"
    branch(store, old, 1, "other", ["training.beta=0.5", "generation.temperature=0.7"], file)
    new = load_recipe(file)
    assert [new.at(t).training.beta for t in range(3)] == ["auto", 0.5, 0.5]
    assert [new.at(t).generation.temperature for t in range(3)] == [0.9, 0.7, 0.7]
    lines = said(store, new)
    assert {state for name, state in lines.items() if name.startswith("0 ")} == {"done"}
    assert len([name for name in lines if name.startswith("0 ")]) > 15
    assert lines["1 train answers"].startswith("2 of 2 shards")
    assert lines["1 model"].startswith("would run") or "again" in lines["1 model"]


def test_it_goes_on_with_the_same_commits(tmp_path: Path, tiny_model: Path) -> None:
    store, old = Store(tmp_path), recipe(tiny_model)
    play(store, old)
    ledger = Ledger(store, "c")
    ledger._write(ledger._read() | {"pins": {"model org/m@": "abc"}})
    branch(store, old, 1, "other", [], tmp_path / "other.yaml")
    assert Ledger(store, "other")._read()["pins"] == {"model org/m@": "abc"}
    assert len(load_recipe(tmp_path / "other.yaml").iterations) == 2  # the shared one, and one to play


@pytest.mark.parametrize(
    ("start", "override", "says"),
    [
        (2, "training.beta=0.5", "has played 1 iterations, so none begins at 2"),
        (1, "data.seed=3", "only keys of training, generation, evaluation and data.subset can differ"),
        (1, "training.bata=3", "bata"),
        (1, "training.beta=-3", "beta"),
    ],
)
def test_what_cannot_branch_is_one_line_and_writes_nothing(tmp_path: Path, tiny_model: Path, start: int, override: str, says: str) -> None:
    store, old = Store(tmp_path), recipe(tiny_model)
    play(store, old)
    with pytest.raises(BadInput, match=says):
        branch(store, old, start, "other", [override], tmp_path / "other.yaml")
    assert not (tmp_path / "other.yaml").exists()


def test_a_recipe_that_is_there_is_not_written_over(tmp_path: Path, tiny_model: Path) -> None:
    store, old = Store(tmp_path), recipe(tiny_model)
    play(store, old)
    (tmp_path / "other.yaml").write_text("mine")
    with pytest.raises(BadInput, match="is there already"):
        branch(store, old, 1, "other", [], tmp_path / "other.yaml")
