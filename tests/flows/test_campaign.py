"""The stop rule and the choice of the next iteration."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flows.iteration import next_iteration, no_more_to_win, settings_of
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
    (store.campaign_folder("c") / f"played-{iteration}.json").write_text(json.dumps(settings_of(found, iteration)))


def following(store: Store, found: Recipe) -> tuple[int | None, str]:
    run: Any = SimpleNamespace(store=store, recipe=found)
    return next_iteration(run)


def test_the_next_iteration_is_the_first_gap(tmp_path: Path) -> None:
    store, found = Store(tmp_path), recipe()
    assert following(store, found) == (0, "")
    play(store, found, 1)
    assert following(store, found) == (0, "")
    play(store, found, 0)
    number, reason = following(store, found)
    assert number is None
    assert "has all its 2 iterations" in reason
    assert following(store, recipe(iterations=[{}, {}, {}])) == (2, "")


def test_a_changed_recipe_is_played_anew(tmp_path: Path) -> None:
    """Else the night after an edit says that all is done, and the edit is never seen."""
    store, found = Store(tmp_path), recipe()
    play(store, found, 0)
    play(store, found, 1)
    assert following(store, recipe(iterations=[{}, {"beta": 5.0}])) == (1, "")
    assert following(store, recipe(training={"beta": 0.2})) == (0, "")
    assert following(store, recipe(stop={"min_accuracy_gain": 0.0}))[0] is None


def test_a_stopped_campaign_stays_stopped(tmp_path: Path) -> None:
    store, found = Store(tmp_path), recipe(stop={"min_accuracy_gain": 0.0})
    play(store, found, 0, before=0.5, after=0.4)
    number, reason = following(store, found)
    assert number is None
    assert "stop rule" in reason
