"""The stop rule and the choice of the next iteration."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.next import next_iteration, no_more_to_win, note_played
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


def recipe(**changes: Any) -> Recipe:
    content = {"name": "c", "model": {"name": "m"}, "data": {"name": "demo"}, "iterations": [{}, {}]}
    return Recipe.model_validate(content | changes)


def play(store: Store, found: Recipe, iteration: int, before: float = 0.1, after: float = 0.5) -> None:
    """Leaves behind what a played iteration leaves."""
    metrics = {"before": {"check_accuracy": before}, "after": {"check_accuracy": after}}
    ref = store.build(Spec("evaluation", 1, {"t": iteration, **metrics}), lambda staging: _write(staging, metrics))
    store.link("c", iteration, {"evaluation": ref})
    note_played(store, found, iteration)


def test_the_next_iteration_is_the_first_gap(tmp_path: Path) -> None:
    store, found = Store(tmp_path), recipe()
    assert next_iteration(store, found) == (0, "")
    play(store, found, 1)
    assert next_iteration(store, found) == (0, "")
    play(store, found, 0)
    number, reason = next_iteration(store, found)
    assert number is None
    assert "has all its 2 iterations" in reason
    assert next_iteration(store, recipe(iterations=[{}, {}, {}])) == (2, "")


def test_a_changed_recipe_is_played_anew(tmp_path: Path) -> None:
    """Else the night after an edit says that all is done, and the edit is never seen."""
    store, found = Store(tmp_path), recipe()
    play(store, found, 0)
    play(store, found, 1)
    assert next_iteration(store, recipe(iterations=[{}, {"beta": 5.0}])) == (1, "")
    assert next_iteration(store, recipe(training={"beta": 0.2})) == (0, "")
    assert next_iteration(store, recipe(stop={"min_accuracy_gain": 0.0}))[0] is None


def test_a_stopped_campaign_stays_stopped(tmp_path: Path) -> None:
    store, found = Store(tmp_path), recipe(stop={"min_accuracy_gain": 0.0})
    play(store, found, 0, before=0.5, after=0.4)
    number, reason = next_iteration(store, found)
    assert number is None
    assert "stop rule" in reason
