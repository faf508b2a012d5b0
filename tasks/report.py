"""Task: show the campaign's table in the Prefect UI."""

from __future__ import annotations

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from spin_core.recipe import Recipe
from spin_core.report.table import rows_for
from spin_core.store import Store


@task(task_run_name="iter-{iteration} · report", cache_policy=NO_CACHE, persist_result=False)
def report(store: Store, recipe: Recipe, iteration: int) -> None:
    """A table artifact with a row a model, under one key a campaign, so that the UI keeps its history."""
    create_table_artifact(
        table=rows_for(store, recipe), key=f"spin-{recipe.name}", description=f"Held-out results up to iteration {iteration}"
    )
