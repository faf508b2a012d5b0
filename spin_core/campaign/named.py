"""A campaign as people name it at the terminal: by its recipe's file, or by its name in a home."""

from __future__ import annotations

from pathlib import Path

from spin_core.campaign.ledger import Ledger
from spin_core.recipe import Recipe, load_recipe
from spin_core.runtime.errors import BadInput
from spin_core.store import Store


def campaigns(store: Store) -> list[str]:
    """The names of all campaigns of a home, in order."""
    return [name for name in store.campaigns() if Ledger(store, name).there]


def recipe_named(store: Store, what: str) -> Recipe:
    """The recipe of a campaign: that of a file, or the one that a campaign of this name was last begun with. Raises BadInput."""
    if Path(what).suffix in {".yaml", ".yml"} or Path(what).is_file():
        return load_recipe(Path(what))
    known = campaigns(store)
    if what not in known:
        there = f"it has {', '.join(known)}" if known else "it has none yet"
        raise BadInput(f"{what} is no recipe file, and no campaign of {store.place} ({there})", remedy="give a .yaml file, or --home")
    return Ledger(store, what).recipe()
