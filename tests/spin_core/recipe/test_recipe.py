"""Recipes: every file under recipes/ loads, and every mistake is one line that names the key."""

from pathlib import Path
from typing import get_args

import pytest

from spin_core.recipe import Recipe, TrainingSettings, load_recipe
from spin_core.runtime.errors import BadInput

RECIPES = Path(__file__).parents[3] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_load(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_overrides_and_iterations() -> None:
    recipe = load_recipe(RECIPES / "demo.yaml", ["training.beta=0.5", "training.learning_rate=5e-6", "iterations.1.learning_rate=1e-7"])
    assert recipe.at(0).training.beta == 0.5
    assert recipe.at(0).training.learning_rate == 5e-6
    assert recipe.at(1).training.learning_rate == 1e-7


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("training.beta=-1", "training.beta"),
        ("training.betta=1", "training.betta"),
        ("name=../up", "name"),
        ("generation.engine=magic", "generation.engine"),
        ("training", "--set"),
        ("iterations.9.beta=1", "iterations.9.beta"),
    ],
)
def test_mistakes_are_named_in_one_line(override: str, named: str) -> None:
    with pytest.raises(BadInput) as caught:
        load_recipe(RECIPES / "demo.yaml", [override])
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["loss=hinge", "label_smoothing=0.1"], "label_smoothing works with loss: sigmoid, nce, sigmoid_norm, not hinge"),
        (["loss=dpop", "label_smoothing=0.1"], "not dpop"),
        (["dpop_lambda=5"], "dpop_lambda works with loss: dpop, not sigmoid"),
        (["loss=sigmoid_norm", "beta=auto"], "give a number"),
        (["beta=automatic"], "training.beta"),
        (["backend=trl", "loss=ipo"], "backend: trl has no loss: ipo; it has loss: sigmoid, hinge, nce"),
        (["backend=trl", "loss=dpop", "sft_weight=1"], "backend: trl has no loss: dpop and no sft_weight"),
        (["backend=trl", "label_smoothing=0.1"], "backend: trl has no label_smoothing"),
        (["epochs=2", "stop_after_epochs=3"], "stop_after_epochs: 3 is more than the 2 epochs"),
    ],
)
def test_combinations_that_have_no_meaning_are_one_line(overrides: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        load_recipe(RECIPES / "demo.yaml", [f"training.{override}" for override in overrides])
    assert "\n" not in str(caught.value)


def test_which_losses_train_on_identical_pairs() -> None:
    kept = {loss: TrainingSettings(loss=loss).keeps_identical for loss in get_args(TrainingSettings.model_fields["loss"].annotation)}
    assert [loss for loss, keeps in kept.items() if keeps] == ["nce", "nca", "sppo", "dpop"]
    assert TrainingSettings(sft_weight=0.1).keeps_identical


def test_the_published_setting() -> None:
    """The pinned SFT model, and a six-epoch schedule left after two epochs, in every iteration."""
    recipe = load_recipe(RECIPES / "zephyr-7b.yaml")
    assert recipe.model.revision == "ac6e600eefcce74f5e8bae1035d4f66019e93190"
    found = [recipe.at(iteration).training for iteration in range(4)]
    assert [(t.epochs, t.stop_after_epochs) for t in found] == [(6, 2)] * 4
    assert [(t.learning_rate, t.beta) for t in found] == [(5e-7, 0.1), (5e-7, 0.1), (1e-7, 0.1), (1e-7, 5.0)]


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        load_recipe(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(BadInput, match=r"broken\.yaml cannot be read"):
        load_recipe(broken)


def test_defaults_are_the_papers() -> None:
    recipe = Recipe(name="x", model={"name": "m"}, data={"name": "d"})  # type: ignore[arg-type]
    assert (recipe.training.learning_rate, recipe.training.beta, recipe.training.epochs, recipe.training.pairs_per_step) == (
        5e-7,
        0.1,
        2,
        64,
    )
    assert recipe.at(2).training.learning_rate == 1e-7
