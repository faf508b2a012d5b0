"""What was chosen and what is out of bounds reaches those who look: the terminal and the page."""

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
from spin_core.report.page import write_page
from spin_core.report.table import rows_for, show
from spin_core.store import Ref, Spec, Store

CURVES = ("loss", "rewards/margins", "rewards/accuracies", "grad_norm")
RECIPE = Recipe.model_validate({"name": "c", "model": {"name": "m"}, "data": {"name": "demo"}, "iterations": [{}, {}, {}]})
WARNING = "the margin comes from pushing sampled answers down: human answers became 3.1 nats less likely"


def play(store: Store, iteration: int, chosen: dict[str, Any] | None, **metrics: Any) -> None:
    """Leaves behind what a played iteration leaves, as far as people are shown it."""
    player = {"check_accuracy": 0.5, "nll": 0.4, "answer_tokens": 9.0, "unfinished": 0.0, "rows": 9}
    content = {"iteration": iteration, "before": player, "after": player, "game": {"accuracy": 1.0, "margin": 0.1, "pairs": 9}} | metrics

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
    }
    found |= {} if chosen is None else {"trained": trained}
    shards = {f"{name}_shards": (made("shard", name, started=0.0, ended=1.0, tokens=5),) for name in ("train", "test", "new")}
    Ledger(store, "c").note(iteration, RECIPE, found | shards)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One turn before there were choices and diagnostics, one with both, one that won nothing."""
    store = Store(tmp_path)
    play(store, 0, None)
    found = {"figures": {}, "warnings": {"pushed_down": WARNING}}
    play(store, 1, {"gamma": 0.5, "epoch": 1, "message": "γ 0.5 at epoch 1, of 4 models"}, diagnostics=found)
    play(store, 2, {"gamma": 0.0, "epoch": None, "message": "nothing was won"}, diagnostics={"figures": {}, "warnings": {}})
    return store


def test_what_was_chosen_is_a_column(store: Store) -> None:
    assert [row["chosen"] for row in rows_for(store, RECIPE)] == ["", "", "γ 0.5, epoch 1", "γ 0: nothing won"]


def test_a_campaign_without_choices_has_no_such_column(tmp_path: Path) -> None:
    play(Store(tmp_path), 0, None)
    assert all("chosen" not in row for row in rows_for(Store(tmp_path), RECIPE))


def test_terminal_and_page_say_it(store: Store) -> None:
    console = Console(file=io.StringIO(), width=200)
    show(store, RECIPE, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    page = write_page(store, RECIPE).read_text()
    for text in (shown, page):
        assert f"iteration 1: {WARNING}" in text
        assert "γ 0.5 at epoch 1, of 4 models" in text
        assert "nothing was won" in text
        assert "3 steps" in text  # of the training, not of the choice
