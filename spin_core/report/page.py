"""The campaign as one HTML page: held-out results, training curves, stage times, answers before and after. No scripts, no network."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure

from spin_core.campaign.ledger import Turn
from spin_core.contracts.tables import read_rows
from spin_core.evaluation.intervals import Interval
from spin_core.recipe import Recipe
from spin_core.report.results import LEGEND, played_turns, rows_for, verdict, warnings_of
from spin_core.report.table import shortcuts_line, stage_rows
from spin_core.store import Store
from spin_core.store.files import replace_text

_HELD_OUT = {
    "checks": "checks right",
    "greedy": "checks right, greedy",
    "nll": "NLL of human answers",
    "tokens": "answer tokens",
    "unfinished": "unfinished share",
}
_CURVES = {"loss": "SPIN loss", "rewards/margins": "reward margin", "rewards/accuracies": "reward accuracy", "grad_norm": "gradient norm"}


def write_page(store: Store, recipe: Recipe) -> Path:
    """Writes `<home>/campaigns/<name>/report.html` whole or not at all, and returns its path."""
    turns = played_turns(store, recipe)
    page = (
        Environment(loader=PackageLoader("spin_core.report", "."), autoescape=True)
        .get_template("page.html")
        .render(
            name=recipe.name,
            recipe=recipe.model_dump_json(indent=1),
            rows=rows_for(turns, recipe.stop),
            verdict=verdict(turns, recipe.stop),
            legend=LEGEND,
            warnings=warnings_of(turns),
            stages=[(turn.iteration, *stage) for turn in turns for stage in stage_rows(turn)],
            shortcuts=shortcuts_line(turns),
            samples=[(turn.iteration, read_rows(turn.ref("evaluation").path / "samples.parquet")) for turn in turns],
            **pictures(turns),
        )
    )
    target = store.campaign_folder(recipe.name) / "report.html"
    replace_text(target, page)
    return target


def pictures(turns: list[Turn]) -> dict[str, str]:
    """The campaign's pictures as base64 PNG: `training` curves and `held_out` results; empty where no iteration is finished."""
    if not turns:
        return {"training": "", "held_out": ""}
    return {"training": _image(_training_curves([_steps(turn) for turn in turns])), "held_out": _image(_held_out(turns))}


def _steps(turn: Turn) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (turn.ref("model").path / "metrics.jsonl").read_text().splitlines()]


def _training_curves(iterations: list[list[dict[str, Any]]]) -> Figure:
    """One panel a metric, one line an iteration, steps counted on over the campaign."""
    figure = Figure(figsize=(11, 2.6), layout="constrained")
    for axis, (key, title) in zip(figure.subplots(1, len(_CURVES)), _CURVES.items(), strict=True):
        offset = 0
        for number, steps in enumerate(iterations):
            axis.plot([offset + line["step"] for line in steps], [line[key] for line in steps], marker=".", label=f"iteration {number}")
            offset += len(steps)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    return figure


def _held_out(turns: list[Turn]) -> Figure:
    """How each model does on the held-out rows, with the intervals."""
    metrics = [turn.metrics["splits"]["test"] for turn in turns]
    players = [metrics[0]["before"], *(found["after"] for found in metrics)]
    names = [name for name in ("checks", "greedy", "nll", "tokens", "unfinished") if name in players[0]][:4]
    figure = Figure(figsize=(11, 2.4), layout="constrained")
    labels = [f"θ_{number}" for number in range(len(players))]
    for axis, name in zip(figure.subplots(1, len(names)), names, strict=True):
        found = [player[name] for player in players]
        half = [Interval(**one).half or 0.0 for one in found]
        axis.bar(labels, [one["value"] for one in found], yerr=half, color="#4472a8", width=0.6, capsize=3)
        axis.set_title(_HELD_OUT[name], fontsize=10)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3, axis="y")
    return figure


def _image(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()
