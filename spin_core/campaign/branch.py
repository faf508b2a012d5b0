"""A campaign that begins as another one did, and goes on otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from spin_core.campaign.ledger import Ledger
from spin_core.recipe import Recipe
from spin_core.recipe.load import validated
from spin_core.runtime.errors import BadInput
from spin_core.store import Store
from spin_core.store.files import replace_text

_BY_ITERATION = ("training", "generation", "evaluation")


def branch(store: Store, recipe: Recipe, start: int, name: str, overrides: list[str], file: Path) -> Recipe:
    """Writes a recipe to `file` whose first `start` iterations are those of `recipe`, with its pins; `overrides` hold from then on.

    What is the same has the same artifacts, so running it plays only what comes after. Raises BadInput where fewer iterations are
    there, or where a key cannot differ by iteration.
    """
    turns = Ledger(store, recipe.name).turns()
    if not 0 <= start <= len(turns):
        raise BadInput(f"campaign {recipe.name} has played {len(turns)} iterations, so none begins at {start}", remedy="lower --from")
    if file.exists():
        raise BadInput(f"{file} is there already", remedy="take another --name, or run it as it is")
    content = recipe.model_dump(mode="json", exclude_unset=True) | {"name": name}
    content["iterations"] = [entry.model_dump(mode="json", exclude_unset=True) for entry in recipe.iterations]
    later = content["iterations"][start:] or [{}]
    for override in overrides:
        group, key, value = _split(override)
        for entry in later:
            entry[group] = entry.get(group, {}) | {key: value}
            if group == "training":
                entry.pop(key, None)  # its short form
    content["iterations"] = content["iterations"][:start] + later
    found = validated(content, f"the recipe of {name}")
    text = f"# Branched from campaign {recipe.name} at iteration {start}: what comes before is shared with it.\n"
    replace_text(file, text + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    Ledger(store, name).pin_as(Ledger(store, recipe.name))
    return found


def _split(override: str) -> tuple[str, str, Any]:
    key, equals, value = override.partition("=")
    group, _, name = key.partition(".")
    if not equals or (group not in _BY_ITERATION and key != "data.subset") or not name:
        raise BadInput(
            f"--set {override!r}: only keys of {', '.join(_BY_ITERATION)} and data.subset can differ by iteration",
            remedy="write a recipe of its own for other keys",
        )
    return group, name, yaml.safe_load(value)
