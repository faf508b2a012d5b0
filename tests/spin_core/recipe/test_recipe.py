"""Recipes: every file under recipes/ loads, and every mistake is one line that names the key."""

from pathlib import Path

import pytest

from spin_core.recipe import Recipe, load_recipe
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
