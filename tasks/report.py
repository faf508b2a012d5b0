"""Task: show the campaign's table, pictures and lineage in the Prefect UI."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from spin_core.campaign.ledger import Turn
from spin_core.recipe import Recipe
from spin_core.report.page import pictures
from spin_core.report.results import LEGEND, played_turns, rows_for, verdict, warnings_of
from spin_core.store import Store

_STAGES = ("prompts", "opponent", "pairs", "reference", "trained", "model", "evaluation")


@task(task_run_name="iter-{iteration} · report", cache_policy=NO_CACHE, persist_result=False)
def report(store: Store, recipe: Recipe, iteration: int) -> None:
    """A table under one key a campaign, so that the UI keeps its history, and a page under one key an iteration."""
    turns = played_turns(store, recipe)
    rows, said = rows_for(turns, recipe.stop), verdict(turns, recipe.stop)
    create_table_artifact(rows, key=f"{recipe.name}-results", description=f"{said[0]}. {LEGEND}")
    page = [
        f"# {recipe.name} · iteration {iteration}",
        *_table(rows),
        f"*{LEGEND}*",
        *said,
        *warnings_of(turns),
        # an image artifact would show its whole data URL; markdown shows the picture
        *(f"![{name}](data:image/png;base64,{data})" for name, data in pictures(turns).items()),
        "## Made of",
        *_lineage(turns[iteration], store.campaign_folder(recipe.name) / f"iter-{iteration}", recipe.name),
    ]
    create_markdown_artifact("\n\n".join(page), key=f"{recipe.name}-iter-{iteration}", description="Results, pictures and lineage")


def _lineage(turn: Turn, folder: Path, campaign: str) -> list[str]:
    """The iteration's artifacts and their parents, with a link to the iteration that made the opponent."""
    rows = []
    for name in filter(turn.made.__contains__, _STAGES):
        manifest = turn.ref(name).manifest
        kinds = Counter(parent["kind"] for parent in manifest["parents"])
        parents = [f"`{p['kind']}/{p['digest'][:12]}`" for p in manifest["parents"] if p["kind"] != "shard"]
        parents += [f"{kinds['shard']} shards"] if kinds["shard"] else []
        artifact = f"`{manifest['kind']}/{manifest['digest'][:12]}`"
        rows.append({"stage": name, "artifact": artifact, "made from": ", ".join(parents), "seconds": manifest["facts"]["seconds"]})
    files = f"Files: `{folder}`"
    if not turn.opponent:
        return [*_table(rows), files]
    before = f"{campaign}-iter-{turn.opponent - 1}"
    return [*_table(rows), f"The opponent is the model of iteration {turn.opponent - 1}: [{before}](/artifacts/key/{before})", files]


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """A markdown table of dicts with the same keys; empty where there are none."""
    if not rows:
        return []
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return ["\n".join(f"| {' | '.join(cells)} |" for cells in lines)]
