"""What `spinflow status` says of every stage of a recipe."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spin_core.campaign.ledger import Ledger
from spin_core.campaign.survey import survey
from spin_core.recipe import Recipe
from spin_core.runtime.errors import SpinflowError
from spin_core.store import Store


def show_stages(store: Store, recipe: Recipe, console: Console) -> None:
    """A row a stage: done, would run, or would run again and why. Nothing is run or written."""
    try:
        lines = list(survey(store, Ledger(store, recipe.name).pinned(recipe, begin=False)))
    except SpinflowError as error:  # what is played can be looked at all the same
        console.print(f"what would run cannot be said: {error}", soft_wrap=True)
        return
    table = Table(title="stages of this recipe")
    for column in ("iteration", "stage", "state"):
        table.add_column(column)
    for line in lines:
        state = Text("done", "green") if line.done else Text(" ".join(filter(None, ("would run", line.why))), "yellow")
        table.add_row(str(line.iteration), line.stage, state)
    console.print(table)
