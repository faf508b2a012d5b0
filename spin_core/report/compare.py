"""Campaigns side by side: their best models on the held-out rows that they share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from spin_core.campaign.rules import best_of
from spin_core.evaluation.figures import Judged, alone, gained, kinds
from spin_core.recipe import Recipe
from spin_core.report.players import players
from spin_core.report.results import HIDDEN, played_turns, shown, title
from spin_core.runtime.errors import BadInput
from spin_core.store import Store

LEGEND = (
    "each figure of the campaign's best model; below it what it has more than the first campaign's, over the "
    "rows that both judged; differences of shares are in points"
)


def compare(store: Store, recipes: Sequence[Recipe]) -> list[dict[str, str]]:
    """A row a campaign, then one with its difference from the first. Raises BadInput where one was not played or no row is shared."""
    rows: list[dict[str, str]] = []
    first: Judged = {}
    for number, recipe in enumerate(recipes):
        best, player = _best(store, recipe)
        what = kinds(player)
        rows.append({"model": f"{recipe.name} θ_{best}"} | _cells(alone(player), what))
        if not number:
            first = player
            continue
        more = gained(first, player)
        if not any(figure["prompts"] for figure in more.values()):
            raise BadInput(
                f"{recipes[0].name} and {recipe.name} have no held-out row in common",
                remedy="campaigns can be compared where data, data.seed and data.test_size are the same",
            )
        rows.append({"model": f"  − {recipes[0].name}"} | _cells(more, what, sign=True))
    columns = dict.fromkeys(name for row in rows for name in row)
    return [{name: row.get(name, "") for name in columns} for row in rows]


def _cells(figures: Mapping[str, Any], what: Mapping[str, Any], *, sign: bool = False) -> dict[str, str]:
    kept = {name: found for name, found in figures.items() if name not in HIDDEN}
    return {title(name): shown(found, what[name]["unit"], sign=sign) if found["prompts"] else "" for name, found in kept.items()}


def _best(store: Store, recipe: Recipe) -> tuple[int, Judged]:
    turns = played_turns(store, recipe)
    if not turns:
        raise BadInput(f"campaign {recipe.name} has no finished iteration in {store.place}", remedy="run it first, or give its --home")
    best = best_of(turns, recipe.stop)
    return best, players(turns)[best].figures()


def show(store: Store, recipes: Sequence[Recipe], console: Console) -> None:
    """Prints the table."""
    rows = compare(store, recipes)
    table = Table(title="campaigns side by side")
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=column == "model")
    for row in rows:
        table.add_row(*row.values(), end_section=row is not rows[0] and row["model"].startswith("  "))
    console.print(table)
    console.print(LEGEND, highlight=False, style="dim")
