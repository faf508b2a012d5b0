"""Task: show the campaign's table, pictures and lineage in the Prefect UI."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.artifacts import create_image_artifact, create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from spin_core.recipe import Recipe
from spin_core.report.page import pictures
from spin_core.report.table import LEGEND, iteration_folders, rows_for
from spin_core.store import Ref, Store

_STAGES = ("prompts", "opponent", "pairs", "reference", "model", "evaluation")


@task(task_run_name="iter-{iteration} · report", cache_policy=NO_CACHE, persist_result=False)
def report(store: Store, recipe: Recipe, iteration: int) -> None:
    """One key a campaign for table and pictures, so that the UI keeps their history; one key an iteration for its lineage."""
    key = f"{recipe.name}-report"
    create_table_artifact(table=rows_for(store, recipe), key=key, description=f"Up to iteration {iteration}. {LEGEND}")
    for name, picture in pictures(iteration_folders(store, recipe)).items():
        title = name.replace("_", " ")
        create_image_artifact(
            f"data:image/png;base64,{picture}", key=f"{key}-{name.replace('_', '-')}", description=f"{recipe.name}: {title}"
        )
    folder = store.campaign_folder(recipe.name) / f"iter-{iteration}"
    create_markdown_artifact(
        lineage(folder, recipe.name, iteration),
        key=f"{recipe.name}-iter-{iteration}-lineage",
        description=f"What iteration {iteration} of {recipe.name} was made of",
    )


def lineage(folder: Path, campaign: str, iteration: int) -> str:
    """A table of one iteration's artifacts and their parents, with a link to the iteration before."""
    lines = [f"# {campaign} · iteration {iteration}", "", "| stage | artifact | made from | seconds | created |", "|---|---|---|---|---|"]
    for name in _STAGES:
        path = (folder / name).resolve()
        manifest = Ref(path.parent.name, path.name, path).manifest
        parents = ", ".join(f"`{parent['kind']}/{parent['digest'][:12]}`" for parent in manifest["parents"]) or "–"
        cells = (name, f"`{manifest['kind']}/{manifest['digest'][:12]}`", parents, str(manifest["facts"]["seconds"]), manifest["created"])
        lines.append("| " + " | ".join(cells) + " |")
    if iteration:
        before = f"{campaign}-iter-{iteration - 1}-lineage"
        lines += ["", f"The opponent was made by iteration {iteration - 1}: [{before}](/artifacts/key/{before})"]
    return "\n".join([*lines, "", f"Files: `{folder}`"])
