"""What was chosen and what is out of bounds reaches those who look."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from spin_core.campaign.ledger import Ledger
from spin_core.contracts.tables import write_rows
from spin_core.evaluation.stage import SAMPLES
from spin_core.recipe import Recipe
from spin_core.report.results import played_turns, rows_for, rows_with_changes, verdict
from spin_core.report.table import show
from spin_core.store import Ref, Spec, Store

CURVES = ("loss", "rewards/margins", "rewards/accuracies", "grad_norm")
RECIPE = Recipe.model_validate({"name": "c", "model": {"name": "m"}, "data": {"name": "demo"}, "iterations": [{}, {}, {}]})
WARNING = "the margin comes from pushing sampled answers down: human answers became 3.1 nats less likely"


def figure(value: float, half: float = 0.1) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "prompts": 9}


def play(
    store: Store, iteration: int, chosen: dict[str, Any] | None, won: float = 0.2, opponent: int | None = None, **metrics: Any
) -> None:
    """Leaves behind what a played iteration leaves, as far as people are shown it."""
    player = {"checks": figure(0.5), "nll": figure(0.4), "tokens": figure(9.0), "unfinished": figure(0.0), "entropy": figure(3.0)}
    test = {
        "before": player,
        "after": player,
        "gained": {"checks": figure(won), "nll": figure(-0.02)},
        "over_start": {"checks": figure(0.4)},
    }
    test["game"] = {"won": figure(1.0), "margin": figure(0.1)}
    units = {"checks": "share", "nll": "nats", "tokens": "tokens", "unfinished": "share", "entropy": "nats"}
    better = {"checks": "higher", "nll": "lower"}
    kinds = {name: {"unit": unit, "better": better.get(name)} for name, unit in units.items()}
    content = {"iteration": iteration, "figures": kinds, "splits": {"test": test}, "diagnostics": {"figures": {}, "warnings": {}}} | metrics

    def write(out: Path) -> None:
        (out / "metrics.json").write_text(json.dumps(content))
        (out / "metrics.jsonl").write_text(json.dumps({"step": 1} | dict.fromkeys(CURVES, 0.5)))
        write_rows(out / "samples.parquet", [], SAMPLES)

    def made(kind: str, name: str, **facts: Any) -> Ref:
        return store.build(Spec(kind, 1, {"t": iteration, "name": name}), lambda out: write(out) or facts)

    trained = made("model", "trained", steps=3, pairs_per_s=2.0, beta=0.1)
    found: dict[str, Any] = {
        "pairs": made("pairs", "", pairs=9, carried=0, identical=0),
        "reference": made("reference", "", pairs_per_s=1.0),
        "model": trained if chosen is None else made("model", "chosen", **chosen),
        "scored": made("reference", "scored"),
        "evaluation": made("evaluation", ""),
        "start": made("model", "start"),
        "judged-nll": made("judged", "nll"),
    }
    found |= {} if chosen is None else {"trained": trained}
    shards = {f"{name}_shards": (made("shard", name, started=0.0, ended=1.0, tokens=5),) for name in ("train", "test", "new")}
    Ledger(store, "c").note(iteration, RECIPE, found | shards, iteration if opponent is None else opponent)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A turn without a choice, one with one and with a warning, one that won nothing."""
    store = Store(tmp_path)
    play(store, 0, None)
    found = {"figures": {}, "warnings": {"pushed_down": WARNING}}
    play(store, 1, {"gamma": 0.5, "epoch": 1, "message": "γ 0.5 at epoch 1, of 4 models"}, diagnostics=found)
    play(store, 2, {"gamma": 0.0, "epoch": None, "message": "nothing was won"})
    return store


def test_what_was_chosen_is_a_column(store: Store) -> None:
    assert [row["γ"] for row in rows_for(played_turns(store, RECIPE), RECIPE.stop)] == ["", "", "0.5, epoch 1", "0"]


def test_a_campaign_without_choices_has_no_such_column(tmp_path: Path) -> None:
    play(Store(tmp_path), 0, None)
    assert all("γ" not in row for row in rows_for(played_turns(Store(tmp_path), RECIPE), RECIPE.stop))


def test_the_terminal_says_it(store: Store) -> None:
    console = Console(file=io.StringIO(), width=200)
    show(store, RECIPE, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"iteration 1: {WARNING}" in text
    assert "γ 0.5 at epoch 1, of 4 models" in text
    assert "nothing was won" in text
    assert "3 steps" in text  # of the training, not of the choice
    assert "θ_3 is best: checks +40.0 ± 10.0 points over θ_0 (chosen by checks on the held-out rows)" in text
    assert "50.0% ±10.0" in text


def test_what_moved_stands_beside_each_figure(store: Store) -> None:
    """▲ only where the interval leaves zero out, and less is better of an NLL."""
    rows = rows_with_changes(played_turns(store, RECIPE), RECIPE.stop)
    assert rows[0]["checks"] == "50.0% ±10.0"
    assert rows[1]["checks"] == "50.0% ±10.0 (+20.0 ±10.0 ▲)"
    assert rows[1]["NLL"] == "0.400 ±0.10 (-0.020 ±0.100)"


def test_what_a_turn_won_is_said_with_its_interval(tmp_path: Path) -> None:
    store = Store(tmp_path)
    play(store, 0, None)
    play(store, 1, None, won=-0.3)
    play(store, 2, None, won=0.05, opponent=1)
    turns = played_turns(store, RECIPE)
    assert [row["model"] for row in rows_for(turns, RECIPE.stop)] == ["θ_0", "θ_1", "θ_2 ✗", "θ_3 ★"]
    assert list(rows_for(turns, RECIPE.stop)[0]) == ["model", "checks", "NLL", "tokens", "cut", "game"]
    assert verdict(turns, RECIPE.stop)[1:] == [
        "θ_1 against θ_0: checks +20.0 ± 10.0 points, NLL -0.020 ± 0.100: better",
        "θ_2 against θ_1: checks -30.0 ± 10.0 points, NLL -0.020 ± 0.100: worse, and not gone on with",
        "θ_3 against θ_1: checks +5.0 ± 10.0 points, NLL -0.020 ± 0.100: no difference in checks can be told",
    ]


def test_a_campaign_that_won_nothing_says_so(tmp_path: Path) -> None:
    play(Store(tmp_path), 0, None, won=-0.3)
    found = verdict(played_turns(Store(tmp_path), RECIPE), RECIPE.stop)
    assert found[0] == "θ_0 is best: no iteration has made it better (chosen by checks on the held-out rows)"


def test_a_ledger_of_an_older_version_is_not_shown(tmp_path: Path) -> None:
    """Its evaluations are made again by the next run; until then there is nothing to show, and no traceback."""
    store = Store(tmp_path)
    play(store, 0, None)
    path = Ledger(store, "c").path
    content = json.loads(path.read_text())
    content["turns"][0]["metrics"] = {"before": {}, "after": {}}
    path.write_text(json.dumps(content))
    assert played_turns(store, RECIPE) == []
