"""Task: the campaign's page anew, and its verdict, table, pictures and lineage in the Prefect UI."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from spin_core.campaign.ledger import Turn
from spin_core.recipe import Recipe
from spin_core.report.draw import curves, histograms
from spin_core.report.draw.panel import Picture, sheet
from spin_core.report.lineage import made_of
from spin_core.report.page.write import write_page
from spin_core.report.results import LEGEND, played_turns, rows_with_changes, state_of, verdict, warnings_of
from spin_core.report.table import shortcuts_line
from spin_core.report.track import track
from spin_core.store import Store


@task(task_run_name="iter-{iteration} · report", cache_policy=NO_CACHE, persist_result=False)
def report(store: Store, recipe: Recipe, iteration: int) -> None:
    """Writes report.html, tells the trackers, and shows a table under one key a campaign, so that the UI keeps its history,
    and a page under one key an iteration."""
    write_page(store, recipe)
    turns = played_turns(store, recipe)
    track(store, recipe, turns)
    rows, said = rows_with_changes(turns, recipe.stop), verdict(turns, recipe.stop)
    create_table_artifact(rows, key=f"{recipe.name}-results", description=f"{said[0]}. {LEGEND}")
    pictures = {"Results": curves.held_out(turns, recipe.stop), "Training": curves.training(turns)}
    pictures["Before and after"] = histograms.before_after(turns[-1:])
    page = [
        f"# {recipe.name} · iteration {iteration}",
        f"**{said[0]}** ({state_of(turns, recipe)})",
        *said[1:],
        *(f"⚠ {line}" for line in warnings_of(turns)),
        *_table(rows),
        f"*In brackets what a model has more than its opponent, ▲ better, ▼ worse. {LEGEND}*",
        *(line for head, found in pictures.items() for line in (f"## {head}", _image(head, found))),
        shortcuts_line(turns),
        "## Made of",
        *_lineage(turns[iteration], store.campaign_folder(recipe.name), recipe.name),
    ]
    create_markdown_artifact("\n\n".join(page), key=f"{recipe.name}-iter-{iteration}", description="Results, pictures and lineage")


def _image(name: str, pictures: Sequence[Picture]) -> str:
    """An image artifact would show its whole data URL; markdown shows the picture."""
    return f"![{name}](data:image/svg+xml;base64,{base64.b64encode(sheet(pictures).encode()).decode()})"


def _lineage(turn: Turn, folder: Path, campaign: str) -> list[str]:
    """The iteration's artifacts and their parents, with a link to the iteration that made the opponent."""
    lines = [*_table(made_of(turn)), f"Files: `{folder / f'iter-{turn.iteration}'}`, page: `{folder / 'report.html'}`"]
    if not turn.opponent:
        return lines
    before = f"{campaign}-iter-{turn.opponent - 1}"
    return [*lines, f"The opponent is the model of iteration {turn.opponent - 1}: [{before}](/artifacts/key/{before})"]


def _table(rows: Sequence[dict[str, str]]) -> list[str]:
    """A markdown table of dicts with the same keys; empty where there are none."""
    if not rows:
        return []
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return ["\n".join(f"| {' | '.join(cells)} |" for cells in lines)]
