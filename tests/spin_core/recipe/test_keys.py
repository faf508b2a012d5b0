"""The list of keys is read from the recipe itself, and a misspelt key is answered with the one that was meant."""

import pytest
from rich.console import Console

from spin_core.recipe import Recipe
from spin_core.recipe.keys import closest, keys
from spin_core.report.keys import show
from spin_core.runtime.errors import BadInput


def test_every_key_has_a_type_a_default_and_a_text() -> None:
    """A key without a docstring is one that nobody can learn about at the terminal or in the UI's form."""
    found = {key.name: key for key in keys(Recipe)}
    assert {"name", "model.name", "training.beta", "iterations.0.learning_rate", "carry_over"} <= set(found)
    assert [name for name, key in found.items() if not (key.kind and key.default and key.text)] == []
    assert (found["training.beta"].kind, found["training.beta"].default) == ("float > 0 ≤ 100 | auto", "auto")
    assert found["model.name"].default == "must be given"


@pytest.mark.parametrize(
    ("written", "meant"),
    [("training.betta", "training.beta"), ("beta", "training.beta"), ("trainning", "training"), ("training.zzz", None), ("foo", None)],
)
def test_a_misspelt_key_is_recognised(written: str, meant: str | None) -> None:
    assert closest(written, Recipe) == meant


def test_a_word_that_no_key_speaks_of() -> None:
    with pytest.raises(BadInput, match="no recipe key speaks of 'zzz'"):
        show("zzz", Console())
