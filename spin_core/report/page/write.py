"""Writes `report.html` from what a campaign has made so far."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from spin_core.campaign.ledger import Turn, model_of
from spin_core.campaign.rules import best_of, metric_of
from spin_core.contracts.tables import read_rows
from spin_core.recipe import Recipe
from spin_core.report.draw import curves, histograms
from spin_core.report.draw.family import family
from spin_core.report.lineage import made_of
from spin_core.report.page.answers import held_out_answers
from spin_core.report.results import HIDDEN, LEGEND, played_turns, state_of, table_of, title, verdict, warnings_of
from spin_core.report.timeline import duration, timeline
from spin_core.store import Store
from spin_core.store.files import replace_text

_HERE = Path(__file__).parent
_DIAGNOSTICS = {
    "gained_real": "human answers gained, nats",
    "gained_generated": "sampled answers gained, nats",
    "margin": "margin, nats",
    "left": "left to win before, nats",
    "pushed_down": "margin from pushing down",
    "differing": "pairs that differ",
    "length": "tokens, after / before",
    "entropy": "entropy, after / before",
}
_SHARES = {"pushed_down", "differing"}
_MINUS = re.compile(r"(?<![\w.\-])-(?=\d)")
_PLAYER, _BELOW = re.compile(r"θ_(\d+)"), str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


def write_page(store: Store, recipe: Recipe) -> Path:
    """Writes `<home>/campaigns/<name>/report.html` whole or not at all, and returns its path."""
    turns = played_turns(store, recipe)
    scripts = {name: (_HERE / f"{name}.js").read_text(encoding="utf-8") for name in ("theme", "differences", "browse")}
    environment = Environment(loader=PackageLoader("spin_core.report", "page"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"duration": duration, "typeset": typeset}
    page = environment.get_template("page.html").render(
        name=recipe.name,
        state=state_of(turns, recipe),
        recipe=yaml.safe_dump(recipe.model_dump(mode="json", exclude_unset=True), sort_keys=False, allow_unicode=True),
        written=time.strftime("%Y-%m-%d %H:%M"),
        style=Markup((_HERE / "page.css").read_text(encoding="utf-8") + (_HERE.parent / "draw" / "chart.css").read_text(encoding="utf-8")),
        scripts={name: Markup(text) for name, text in scripts.items()},
        hashes=[base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts.values()],
        turns=turns,
        **(_of_turns(turns, recipe) if turns else {}),
    )
    target = store.campaign_folder(recipe.name) / "report.html"
    replace_text(target, page)
    store.publish(target)
    return target


def _of_turns(turns: Sequence[Turn], recipe: Recipe) -> dict[str, Any]:
    rows, stop = table_of(turns, recipe.stop), recipe.stop
    metric, best = metric_of(turns[-1].metrics, stop), best_of(turns, stop)
    said, answers = verdict(turns, stop), held_out_answers(turns)
    headline, _, basis = said[0].partition(" (")
    kinds = turns[-1].metrics["figures"]
    return {
        "rows": rows,
        "headline": headline,
        "basis": basis[:1].upper() + basis[1:].removesuffix(")"),
        "said": said[1:],
        "warnings": warnings_of(turns),
        "legend": LEGEND,
        "held_out": _inline(curves.held_out(turns, stop)),
        "training": _inline(curves.training(turns)),
        "histograms": _inline(histograms.before_after(turns)),
        "shortcuts": [(turn.iteration, _shortcuts(turn)) for turn in turns if turn.ref("pairs").facts.get("shortcuts")],
        "told_apart": [f"iteration {turn.iteration}: {line}" for turn in turns for line in turn.ref("pairs").facts.get("warnings", ())],
        "diagnostics": _diagnostics(turns),
        "timeline": timeline(turns, recipe.name),
        "family": Markup(typeset(family(rows, title(metric)))),
        "lineage": [(turn.iteration, made_of(turn)) for turn in turns],
        "best": {"number": best, "folder": model_of(turns, best).place},
        "samples": read_rows(turns[-1].ref("evaluation").path / "samples.parquet"),
        "answers": answers,
        "browser": {
            "players": [typeset(row.name) for row in rows],
            "best": best,
            "opponents": [turn.opponent for turn in turns],
            "figures": [(name, kinds[name]) for name in sorted(answers.figures, key=lambda name: _order(name, metric))],
            "metric": metric if metric in answers.figures else "",
        },
    }


def _order(figure: str, metric: str) -> tuple[bool, bool, bool]:
    """What counts first, then what the table has, then the rest."""
    return figure != metric, figure in HIDDEN, figure in {"tokens", "unfinished"}


def _inline(pictures: Sequence[Any]) -> list[tuple[str, Markup]]:
    """What `draw` makes escapes every word in it."""
    return [(picture.title, Markup(typeset(picture.svg))) for picture in pictures]


def typeset(text: str) -> str:
    """θ_12 as θ₁₂, a true minus, and no line that breaks before ± or %."""
    text = _PLAYER.sub(lambda found: "θ" + found[1].translate(_BELOW), text)
    return _MINUS.sub("−", text).replace(" ± ", "\u00a0±\u00a0").replace(" %", "\u00a0%")


def _shortcuts(turn: Turn) -> dict[str, float]:
    found: Mapping[str, float] = turn.ref("pairs").facts["shortcuts"]
    return {name.replace("_", " "): value for name, value in found.items()}


def _diagnostics(turns: Sequence[Turn]) -> dict[str, list[str]]:
    """A row a figure, a column an iteration."""
    found = [turn.metrics["diagnostics"]["figures"] for turn in turns]
    rows = {}
    for name, head in _DIAGNOSTICS.items():
        values = [figures.get(name) for figures in found]
        if any(value is not None for value in values):
            rows[head] = ["" if v is None else f"{v:.0%}" if name in _SHARES else f"{v:.2f}".replace("-", "−") for v in values]
    return rows
