"""The stop rule and the choice of the next iteration."""

import json
from pathlib import Path
from typing import Any

import pytest

from spin_core.campaign.ledger import Ledger, Turn
from spin_core.campaign.rules import next_iteration, no_more_to_win
from spin_core.campaign.workspace import link
from spin_core.recipe import Recipe, StopSettings
from spin_core.store import Ref, Spec, Store


@pytest.mark.parametrize(
    ("gain", "before", "after", "stops"),
    [(None, 0.5, 0.1, False), (0.0, 0.5, 0.5, False), (0.0, 0.5, 0.4, True), (0.1, 0.5, 0.55, True), (0.1, None, None, False)],
)
def test_the_stop_rule(gain: float | None, before: float | None, after: float | None, stops: bool, tmp_path: Path) -> None:
    metrics = {"before": {"check_accuracy": before}, "after": {"check_accuracy": after}}
    turn = Turn(0, {}, {"model": made(Store(tmp_path), "model", 0)}, metrics)
    assert bool(no_more_to_win(StopSettings(min_accuracy_gain=gain), turn)) is stops


@pytest.mark.parametrize(
    ("gamma", "stop", "says"),
    [(0.0, True, "no model better than the opponent"), (0.0, False, ""), (0.5, True, ""), (1.0, True, ""), (None, True, "")],
)
def test_a_line_search_that_won_nothing_ends_the_campaign(gamma: float | None, stop: bool, says: str, tmp_path: Path) -> None:
    """Unless the recipe says otherwise: new answers of the same model may still teach something."""
    model = Store(tmp_path).build(Spec("model", 1, {}), lambda out: {} if gamma is None else {"gamma": gamma})
    turn = Turn(0, {}, {"model": model}, {"before": {"check_accuracy": 0.5}, "after": {"check_accuracy": 0.5}})
    found = no_more_to_win(StopSettings(nothing_won=stop), turn)
    assert says in found
    assert bool(found) is bool(says)


def recipe(**changes: Any) -> Recipe:
    content = {"name": "c", "model": {"name": "m"}, "data": {"name": "demo"}, "iterations": [{}, {}]}
    return Recipe.model_validate(content | changes)


def made(store: Store, kind: str, number: int, tag: str = "") -> Ref:
    metrics = {"before": {"check_accuracy": 0.5}, "after": {"check_accuracy": 0.4}}
    return store.build(
        Spec(kind, 1, {"t": number, "tag": tag}), lambda out: (out / "metrics.json").write_text(json.dumps(metrics)) and None
    )


def play(store: Store, found: Recipe, iteration: int, tag: str = "") -> None:
    """Leaves behind what a played iteration leaves."""
    names = {"evaluation": made(store, "evaluation", iteration, tag), "model": made(store, "model", iteration, tag)}
    shards = {f"{name}_shards": (made(store, "shard", iteration, tag),) for name in ("train", "test", "new")}
    Ledger(store, "c").note(iteration, found, {**names, **shards})
    link(store, "c")


def test_the_next_iteration_is_the_first_that_was_not_played(tmp_path: Path) -> None:
    store, found = Store(tmp_path), recipe()
    assert next_iteration(Ledger(store, "c").turns(), found) == (0, "")
    play(store, found, 0)
    assert next_iteration(Ledger(store, "c").turns(), found) == (1, "")
    play(store, found, 1)
    number, reason = next_iteration(Ledger(store, "c").turns(), found)
    assert number is None
    assert "has all its 2 iterations" in reason
    assert next_iteration(Ledger(store, "c").turns(), recipe(iterations=[{}, {}, {}])) == (2, "")


@pytest.mark.parametrize(
    ("changes", "then"),
    [
        ({"iterations": [{}, {"beta": 5.0}]}, 1),
        ({"iterations": [{}, {"generation": {"temperature": 0.5}}]}, 1),
        ({"iterations": [{"data": {"subset": 200}}, {}]}, 0),
        ({"training": {"beta": 0.2}}, 0),
        ({"training": {"beta": 0.1, "tokens_per_micro_batch": 8}}, None),  # of speed: after an out-of-memory, say
        ({"stop": {"min_accuracy_gain": 0.0}}, None),
        ({"iterations": [{}, {"beta": 0.1}]}, None),  # what it was already
    ],
)
def test_a_changed_recipe_is_played_anew_where_it_changes_results(tmp_path: Path, changes: dict[str, Any], then: int | None) -> None:
    """Else the night after an edit says that all is done; and one that only saves memory plays everything again."""
    store, found = Store(tmp_path), recipe()
    play(store, found, 0)
    play(store, found, 1)
    assert next_iteration(Ledger(store, "c").turns(), recipe(**changes))[0] == then


def test_a_stopped_campaign_stays_stopped(tmp_path: Path) -> None:
    store, found = Store(tmp_path), recipe(stop={"min_accuracy_gain": 0.0})
    play(store, found, 0)
    number, reason = next_iteration(Ledger(store, "c").turns(), found)
    assert number is None
    assert "stop rule" in reason


def test_later_turns_stay_where_nothing_changed_and_go_where_it_did(tmp_path: Path) -> None:
    """A run that plays finished iterations again must not lose the later ones' links, killed or not; another chain's must not stay."""
    store, found = Store(tmp_path), recipe()
    play(store, found, 0)
    play(store, found, 1)
    folder = tmp_path / "campaigns" / "c"
    play(store, found, 0)
    assert [turn.iteration for turn in Ledger(store, "c").turns()] == [0, 1]
    assert (folder / "iter-1" / "model").resolve().is_dir()
    play(store, found, 0, tag="other")
    assert [turn.iteration for turn in Ledger(store, "c").turns()] == [0]
    assert sorted(path.name for path in folder.glob("iter-*")) == ["iter-0"]
    assert (folder / "iter-0" / "train-shard-000").resolve() == made(store, "shard", 0, "other").path
