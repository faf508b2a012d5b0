"""The stop rule and the choice of the next iteration."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.campaign import no_more_to_win
from flows.iteration import next_iteration
from spin_core.recipe import Recipe, StopSettings
from spin_core.store import Spec, Store


@pytest.mark.parametrize(
    ("gain", "before", "after", "stops"),
    [(None, 0.5, 0.1, False), (0.0, 0.5, 0.5, False), (0.0, 0.5, 0.4, True), (0.1, 0.5, 0.55, True), (0.1, None, None, False)],
)
def test_the_stop_rule(tmp_path: Path, gain: float | None, before: float | None, after: float | None, stops: bool) -> None:
    metrics = {"before": {"check_accuracy": before}, "after": {"check_accuracy": after}}
    ref = Store(tmp_path).build(Spec("evaluation", 1, {}), lambda staging: _write(staging, metrics))
    assert no_more_to_win(StopSettings(min_accuracy_gain=gain), ref) is stops


def _write(staging: Path, metrics: dict[str, Any]) -> None:
    (staging / "metrics.json").write_text(json.dumps(metrics))


def test_the_next_iteration_is_the_first_gap(tmp_path: Path) -> None:
    store = Store(tmp_path)
    recipe = Recipe.model_validate({"name": "c", "model": {"name": "m"}, "data": {"name": "demo"}, "iterations": [{}, {}, {}]})
    run: Any = SimpleNamespace(store=store, recipe=recipe)
    ref = store.build(Spec("evaluation", 1, {}), lambda staging: _write(staging, {}))
    found = [next_iteration(run)]
    for iteration in (1, 0, 2):
        store.link("c", iteration, {"evaluation": ref})
        found.append(next_iteration(run))
    assert found == [0, 0, 2, 2]
