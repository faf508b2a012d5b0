"""The campaign's table: a row a model, its stages' times, three answers before and after, the best model's folder."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from spin_core.campaign.ledger import Turn, model_of
from spin_core.campaign.rules import best_of
from spin_core.contracts.tables import read_rows
from spin_core.generation.stage import busy_seconds
from spin_core.recipe import Recipe
from spin_core.report.results import LEGEND, played_turns, rows_for, verdict, warnings_of
from spin_core.store import Ref, Store


def stage_rows(turn: Turn) -> list[tuple[str, str, str]]:
    """(stage, seconds, speed) of one iteration, from the artifacts' manifests."""
    shards = [ref.facts for name in turn.made if name.endswith("_shards") for ref in turn.refs(name)]
    judged = [ref.facts["seconds"] for name, ref in turn.made.items() if "judged-" in name and isinstance(ref, Ref)]
    busy = busy_seconds(shards)
    tokens = sum(s["tokens"] for s in shards)
    pairs, reference, chosen, scored = (turn.ref(name).facts for name in ("pairs", "reference", "model", "scored"))
    model = turn.trained.facts
    identical = f"{pairs['identical']} identical {'kept' if pairs.get('keep_identical') else 'left out'}"
    mixed = f"{pairs['pairs']} pairs, {pairs['carried']} carried over, {identical}"
    return [
        ("generate", f"{busy:.0f}", f"{tokens / max(busy, 1e-9):,.0f} tokens/s"),
        ("gather", f"{pairs['seconds']:.1f}", mixed),
        ("score", f"{reference['seconds']:.0f}", f"{reference['pairs_per_s']:.1f} pairs/s"),
        ("fine-tune", f"{model['seconds']:.0f}", f"{model['steps']} steps, {model['pairs_per_s']:.2f} pairs/s, β {model['beta']:.3g}"),
        *([("choose", f"{chosen['seconds']:.0f}", chosen["message"])] if "gamma" in chosen else []),
        ("score held-out", f"{scored['seconds']:.0f}", "the held-out pairs under the new model"),
        ("judge", f"{sum(judged):.1f}", f"{len(judged)} evaluations of players"),
    ]


def shortcuts_line(turns: list[Turn]) -> str:
    """How well the sides of each iteration's pairs are told apart without reading; empty where nobody measured it."""
    parts = [
        f"iteration {turn.iteration}: " + ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in found.items())
        for turn in turns
        if (found := turn.ref("pairs").facts.get("shortcuts"))
    ]
    return "human and sampled answers told apart without reading (AUC, 0.5 is a coin) · " + " · ".join(parts) if parts else ""


def show(store: Store, recipe: Recipe, console: Console) -> None:
    """Prints the tables, the verdict, the samples and the path of the best model."""
    turns = played_turns(store, recipe)
    if not turns:
        console.print(f"campaign {recipe.name}: no iteration is finished yet; start it with `spinflow run`")
        return
    rows = rows_for(turns, recipe.stop)
    results = Table(title=f"{recipe.name}: held-out results")
    for column in rows[0]:
        results.add_column(column, justify="left" if column == "model" else "right", no_wrap=column == "model")
    for row in rows:
        results.add_row(*row.values())
    console.print(results)
    console.print(LEGEND, highlight=False, style="dim")
    for number, line in enumerate(verdict(turns, recipe.stop)):
        console.print(line, highlight=False, style="" if number else "bold", soft_wrap=True)
    for line in warnings_of(turns):
        console.print(line, highlight=False, style="yellow")

    stages = Table(title="stages")
    for column in ("iteration", "stage", "seconds", "speed"):
        stages.add_column(column, justify="right" if column == "seconds" else "left")
    for turn in turns:
        for stage, seconds, speed in stage_rows(turn):
            stages.add_row(str(turn.iteration), stage, seconds, speed)
    console.print(stages)
    console.print(shortcuts_line(turns), highlight=False, style="dim")

    samples = Table(title=f"samples: before and after iteration {turns[-1].iteration}", show_lines=True)
    for column in ("prompt", "human", "before", "after"):
        samples.add_column(column, overflow="fold", ratio=1)
    for row in read_rows(turns[-1].ref("evaluation").path / "samples.parquet"):
        samples.add_row(*(_short(row[key]) for key in ("prompt", "real", "before", "after")))
    console.print(samples)
    best = best_of(turns, recipe.stop)
    where = f"θ_{best} in {store.url}; `spinflow export {recipe.name} FOLDER` takes it away" if store.url else model_of(turns, best).folder
    console.print(f"best model: {where}", soft_wrap=True)


def _short(text: str, limit: int = 300) -> str:
    text = " ".join(text.split())
    return (text if len(text) <= limit else text[: limit - 1] + "…").replace("[", "\\[")
