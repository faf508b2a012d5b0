"""The table of `spinflow keys`."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spin_core.recipe import Recipe
from spin_core.recipe.keys import keys
from spin_core.runtime.errors import BadInput


def show(word: str, console: Console) -> None:
    """Prints every key whose name or text holds `word`."""
    found = [key for key in keys(Recipe) if word.lower() in f"{key.name} {key.text}".lower()]
    if not found:
        raise BadInput(f"no recipe key speaks of {word!r}", remedy="`spinflow keys` without a word lists all")
    table = Table(title="recipe keys", caption="set in the YAML file, or for one run with --set KEY=VALUE", show_lines=False)
    table.add_column("key", no_wrap=True)
    for column in ("type", "default", "what it does"):
        table.add_column(column, overflow="fold")
    for key in found:
        table.add_row(Text(key.name, "bold"), Text(key.kind), Text(key.default), Text(key.text))
    console.print(table)
