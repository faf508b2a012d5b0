"""`spinflow ls`: the campaigns of a home, a row each."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spin_core.campaign.ledger import Ledger
from spin_core.campaign.named import campaigns
from spin_core.campaign.rules import best_of, metric_of
from spin_core.campaign.workspace import running
from spin_core.report.results import shown, title
from spin_core.runtime.errors import BadInput, SpinflowError
from spin_core.store import Store


def rows(store: Store) -> list[dict[str, str]]:
    """A row a campaign, in order of name: how far it is, its best player with the figure that counts, its state, and its size."""
    return [_row(store, name) for name in campaigns(store)]


def _row(store: Store, name: str) -> dict[str, str]:
    ledger = Ledger(store, name)
    row = {"campaign": name, "played": "", "best": "", "figure": "", "changed": _ago(ledger.path), "state": "", "size": ""}
    try:
        turns, recipe = ledger.whole_turns(), ledger.recipe() if ledger.begun else None
        planned = len(recipe.iterations) if recipe else 0
        row["played"] = f"{len(turns)} of {planned}" if recipe else "0"
        if recipe and turns:
            number, metric = best_of(turns, recipe.stop), metric_of(turns[-1].metrics, recipe.stop)
            test = turns[number - 1].metrics["splits"]["test"]["after"] if number else turns[0].metrics["splits"]["test"]["before"]
            row["best"] = f"θ_{number}"
            if metric in test:
                row["figure"] = f"{title(metric)} {shown(test[metric], turns[-1].metrics['figures'][metric]['unit'])}"
        made = {ref for turn in ledger.turns() for what in turn.made for ref in turn.refs(what)}
        row["size"] = f"{sum(ref.bytes for ref in made if ref.done) / 1e9:.1f} GB"
        row["state"] = "" if recipe else "not begun"
    except (SpinflowError, KeyError) as error:
        row["state"] = f"cannot be read: {' '.join(str(error).split())[:80]}"
    if at_work := running(store, name):
        row["state"] = f"running in {at_work.partition(' (')[0]}"
    return row


def _ago(path: Path) -> str:
    seconds = time.time() - path.stat().st_mtime
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit} ago"
    return "just now"


def show(store: Store, console: Console) -> None:
    """Prints the table. Raises BadInput where the home has no campaign."""
    found = rows(store)
    if not found:
        raise BadInput(f"{store.place} has no campaign", remedy="give --home, or begin one with `spinflow run`")
    table = Table(title=f"campaigns in {store.place}")
    for column in found[0]:
        table.add_column(
            column,
            justify="right" if column in {"played", "figure", "size"} else "left",
            no_wrap=column in {"best", "figure", "changed", "size"},
            overflow="fold",
        )
    for row in found:
        table.add_row(*row.values())
    console.print(table)
