"""`bench/results/proof-DATE.json`, `docs/proof.md` and its pictures, of what a run's folder holds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from jinja2 import Environment, FileSystemLoader

from bench.proof import settings, tables
from bench.proof.collect import Run, collect, verdict_of
from bench.proof.families import FAMILIES, VOCABULARY, support_of
from bench.proof.measure import KL_ROWS
from bench.proof.pictures import draw
from bench.proof.settings import ARMS, DEFAULT, REGIMES
from bench.proof.statistics import Interval
from spin_core.store.files import replace_text

_FAMILY_ARMS = ("published", "auto", DEFAULT, "auto_exact", "auto_search_4", "nce_search")
_NAMES = {"t1": "T = 1 accuracy", "greedy": "greedy accuracy", "nll": "NLL"}


def write(work: Path, root: Path) -> dict[str, Any]:
    """Writes all three under `root`; returns the verdict."""
    run = Run(work)
    found = collect(run)
    results = root / "bench" / "results" / f"proof-{run.facts['date']}.json"
    for folder in (root / "docs" / "images", results.parent):
        folder.mkdir(parents=True, exist_ok=True)
    replace_text(results, json.dumps(_plain(found), indent=1) + "\n")
    pictures = {name: draw(run, name, root / "docs" / "images" / f"proof-{name}.svg") for name in REGIMES}
    replace_text(root / "docs" / "proof.md", _page(run, found["verdict"], pictures, results.name))
    return {"bench": "proof", "met": found["verdict"]["met"], "complete": found["verdict"]["complete"], "results": str(results)}


def _plain(content: Any) -> Any:
    """For JSON: intervals by name, floats in six digits, no infinity."""
    if isinstance(content, Interval):
        return {name: _plain(value) for name, value in content._asdict().items()}
    if isinstance(content, dict):
        return {str(name): _plain(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_plain(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else None
    return content


def _page(run: Run, bar: dict[str, Any], pictures: dict[str, bool], results: str) -> str:
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), keep_trailing_newline=True, autoescape=False).get_template(
        "page.md"
    )
    return template.render(
        facts=run.facts,
        versions=", ".join(f"{name} {number}" for name, number in run.facts["versions"].items()),
        results=results,
        bar=bar,
        default=ARMS[DEFAULT].title.split(": ")[1],
        parts=_parts(bar),
        losses=[_loss(loss) for loss in bar["losses"]],
        parameters=f"{(run.read(f'base/{settings.TUNING[0]}') or {}).get('parameters', 0):,}",
        sizes={name: f"{value:,}" for name, value in run.facts["sizes"].items()},
        families=[_family(name) for name in FAMILIES],
        kl_rows=KL_ROWS,
        seeds=len(settings.SEEDS),
        iterations=settings.ITERATIONS,
        sft_epochs=settings.SFT_EPOCHS,
        tuned_on=" and ".join(settings.TUNED_ON),
        play_rates=_listed(settings.PLAY_RATES),
        sft_rates=_listed(settings.SFT_RATES),
        gammas=_listed((0.0, *settings.GAMMAS, 1.0)),
        regimes=[
            {"name": name, "title": regime.title, "picture": pictures[name], "tables": _tables(run, name)}
            for name, regime in REGIMES.items()
        ],
    )


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _family(name: str) -> tuple[str, ...]:
    family = FAMILIES[name]
    prompt = family.prompt(Random(0))
    answers = support_of(name, prompt)
    text = " ".join(VOCABULARY[token] for token in answers[-1][1][:-1])
    count = f"{len(answers)} right answers, one of them `{text}`" if len(answers) > 1 else f"`{text}`"
    return name, family.kind, str(family.share), f"`{' '.join(prompt)}`", count


def _parts(bar: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Each part of the bar with what was found."""
    gains, passed = bar["against_sft"], bar["passed"]
    return [
        (
            "no iteration worse than the one before by more than its interval",
            f"{len(bar['losses'])} of {bar['tests']} are",
            not bar["losses"],
        ),
        ("at the end better than SFT in NLL, nats a token won", tables.shown(gains["nll"], 1, 4, sign=True), passed["nll"]),
        ("T = 1 accuracy not a point below SFT's", tables.shown(gains["t1"], 100, 2, sign=True), passed["t1"]),
        ("greedy accuracy not a point below SFT's", tables.shown(gains["greedy"], 100, 2, sign=True), passed["greedy"]),
    ]


def _loss(loss: dict[str, Any]) -> str:
    how = (1, 4) if loss["measure"] == "nll" else (100, 2)
    return f"seed {loss['seed']}, iteration {loss['iteration']}: {_NAMES[loss['measure']]} {tables.shown(loss['change'], *how, sign=True)}"


def _tables(run: Run, regime: str) -> list[tuple[str, list[str]]]:
    if not run.read(f"theta0/{regime}/{settings.SEEDS[0]}"):
        return [("Not run yet.", [])]
    shown = (*tables.FIXED, *(ARMS[arm].title for arm in _FAMILY_ARMS))
    found = [
        ("At the end, mean over seeds with its interval:", tables.ends(run, regime)),
        ("Less the SFT player of the same seed:", tables.against_sft(run, regime)),
        ("T = 1 accuracy, % / greedy accuracy, % / NLL a token by iteration:", tables.by_iteration(run, regime, list(ARMS))),
        ("The bar, for every arm that could be the default:", tables.verdicts(run, regime, verdict_of)),
        (
            "T = 1 accuracy, % / greedy accuracy, % / KL from p_data in nats an answer, by family at the end:",
            tables.by_family(run, regime, shown),
        ),
        ("What the validation rows chose:", tables.chosen(run, regime)),
    ]
    return [(title, lines) for title, lines in found if lines]
