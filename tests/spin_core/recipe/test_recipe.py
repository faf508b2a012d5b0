"""Recipes: every file under recipes/ loads, and every mistake is one line that names the key."""

from pathlib import Path
from typing import get_args

import pytest

from spin_core.recipe import Recipe, TrainingSettings, load_recipe, with_overrides
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
        ("model.name=@m", "model.name"),
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
        (["backend=trl", "history_weight=0.5"], "backend: trl has no history_weight"),
        (["loss=dpop", "history_weight=0.5"], "would hold sampled answers up"),
        (["line_search=[0.5]"], "choose on validation rows: set data.validation_size"),
        (["choose_epoch=true"], "choose on validation rows: set data.validation_size"),
        (["line_search=[0.5, 0]"], r"training.line_search.1: Input should be greater than 0"),
        (["epochs=2", "stop_after_epochs=3"], "stop_after_epochs: 3 is more than the 2 epochs"),
    ],
)
def test_combinations_that_have_no_meaning_are_one_line(overrides: list[str], says: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        load_recipe(RECIPES / "sharegpt-smollm2.yaml", [f"training.{override}" for override in overrides])
    assert "\n" not in str(caught.value)


def test_which_losses_train_on_identical_pairs() -> None:
    kept = {
        loss: TrainingSettings(loss=loss, beta=1.0).keeps_identical for loss in get_args(TrainingSettings.model_fields["loss"].annotation)
    }
    assert [loss for loss, keeps in kept.items() if keeps] == ["nce", "nca", "sppo", "dpop"]
    assert TrainingSettings(sft_weight=0.1).keeps_identical


def test_the_published_setting() -> None:
    """The pinned SFT model, and a six-epoch schedule left after two epochs, in every iteration."""
    recipe = load_recipe(RECIPES / "zephyr-7b.yaml")
    assert recipe.model.revision == "ac6e600eefcce74f5e8bae1035d4f66019e93190"
    found = [recipe.at(iteration).training for iteration in range(4)]
    assert [(t.epochs, t.stop_after_epochs) for t in found] == [(6, 2)] * 4
    assert [(t.learning_rate, t.beta) for t in found] == [(5e-7, 0.1), (5e-7, 0.1), (1e-7, 0.1), (1e-7, 5.0)]


FILE = """
name: x
model: {name: m, revision: %s}
data: {name: d, revision: %s, split: %s}
"""


@pytest.mark.parametrize("text", ["123e4567", "0123456", "1e5", "1234567", "2024-01-01", "12:30:45", "1_000", "on", "No", "0x1f", ".5"])
def test_text_stays_text(tmp_path: Path, text: str) -> None:
    """A commit's digits can look like a number; another revision would be trained on, or none be found."""
    path = tmp_path / "r.yaml"
    path.write_text(FILE % (text, text, text))
    recipe = load_recipe(path)
    assert (recipe.model.revision, recipe.data.revision, recipe.data.split) == (text, text, text)
    recipe = load_recipe(RECIPES / "demo.yaml", [f"data.revision={text}", f"model.revision={text}", f"data.split={text}"])
    assert (recipe.model.revision, recipe.data.revision, recipe.data.split) == (text, text, text)
    assert with_overrides(recipe, ["training.beta=1e-1"]).data.revision == text


def test_other_fields_read_what_people_write(tmp_path: Path) -> None:
    """YAML 1.1 takes 5e-6 for text, and on for a truth: both are what their field makes of them."""
    path = tmp_path / "r.yaml"
    path.write_text(
        (FILE % ("~", "null", "")) + "training: {learning_rate: 5e-6, gradient_checkpointing: on, lora: {target_modules: [1e3, q]}}\n"
    )
    recipe = load_recipe(path)
    assert (recipe.model.revision, recipe.data.revision, recipe.data.split) == (None, None, None)
    assert (recipe.training.learning_rate, recipe.training.gradient_checkpointing) == (5e-6, True)
    assert recipe.training.lora is not None
    assert recipe.training.lora.target_modules == ["1e3", "q"]
    assert load_recipe(path, ["training.gradient_checkpointing=off"]).training.gradient_checkpointing is False


def test_a_key_that_is_there_twice_is_told(tmp_path: Path) -> None:
    """YAML would take the last one, and say nothing of the first."""
    path = tmp_path / "r.yaml"
    path.write_text("name: x\nmodel: {name: m}\ndata: {name: d}\ntraining: {beta: 1}\ntraining: {epochs: 1}\n")
    with pytest.raises(BadInput, match=r"training is there twice.*line 5"):
        load_recipe(path)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="does not exist"):
        load_recipe(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(BadInput, match=r"broken\.yaml cannot be read"):
        load_recipe(broken)


def test_defaults_are_the_papers_but_for_what_the_proof_says() -> None:
    """β from the data, and the line search where there are rows to choose on."""
    recipe = Recipe(name="x", model={"name": "m"}, data={"name": "d"})  # type: ignore[arg-type]
    assert (recipe.training.learning_rate, recipe.training.beta, recipe.training.epochs, recipe.training.pairs_per_step) == (
        5e-7,
        "auto",
        2,
        64,
    )
    assert recipe.at(2).training.learning_rate == 1e-7
    assert recipe.at(0).training.gammas == []
    with_rows = with_overrides(recipe, ["data.validation_size=9"])
    assert with_rows.at(0).training.gammas == [0.25, 0.5, 0.75]
    assert with_overrides(with_rows, ["data.validation_size=0"]).at(0).training.gammas == []  # nothing of it sticks
