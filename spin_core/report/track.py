"""Sends a campaign's evaluations to the trackers of its recipe, each one once."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spin_core.campaign.ledger import Turn
from spin_core.recipe import Recipe
from spin_core.runtime.errors import SpinflowError
from spin_core.runtime.process import run_job
from spin_core.runtime.progress import tell
from spin_core.store import Store
from spin_core.store.files import replace_text
from spin_core.tracking.trackers import Campaign

_FILE = "tracked.json"  # which evaluations the trackers have


def track(store: Store, recipe: Recipe, turns: Sequence[Turn]) -> None:
    """In a child; a tracker that cannot be reached is told about and fails nothing."""
    names = recipe.training.report_to
    file = store.campaign_folder(recipe.name) / _FILE
    store.pull(file)
    had: list[str] = json.loads(file.read_text()) if file.exists() else []
    new = [turn for turn in turns if turn.ref("evaluation").digest not in had]
    if not names or not new:
        return
    campaign = Campaign(recipe.name, str(store.home), store.url)
    evaluations = [figures for turn in new for figures in _of_turn(turn)]
    job: dict[str, Any] = {"names": list(names), "campaign": campaign.as_dict(), "evaluations": evaluations}
    try:
        run_job("spin_core.tracking.job", job, store.log_path("tracking"))
    except SpinflowError as error:
        tell("training.report_to", f"evaluations were not sent: {error}")
        return
    replace_text(file, json.dumps([*had, *(turn.ref("evaluation").digest for turn in new)]))
    store.push(file)


def _of_turn(turn: Turn) -> Iterator[tuple[int, dict[str, float]]]:
    """(t, figures of θ_t) of the player that the turn made, and of θ_0 before the first."""
    split = turn.metrics["splits"]["test"]
    if not turn.iteration:
        yield 0, _plain("", split["before"])
    found = _plain("", split["after"]) | _plain("gained/", split["gained"]) | _plain("", {"game": split["game"]["won"]})
    diagnostics = turn.metrics["diagnostics"]["figures"]
    known = {f"evaluation/diagnostics/{name}": value for name, value in diagnostics.items() if value is not None}
    yield turn.iteration + 1, found | known


def _plain(group: str, figures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {f"evaluation/{group}{name}": figure["value"] for name, figure in figures.items() if math.isfinite(figure["value"])}
