"""What a recipe will take, by hand."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from spin_core.inspect import rates
from spin_core.inspect.plan import Lengths, Plan, show
from spin_core.inspect.rates import GPUS, Rates, measured, parse_gpus
from spin_core.recipe import Recipe
from spin_core.runtime.errors import BadInput
from spin_core.store import Store

# a model of 10 parameters; a prompt of 6 tokens, a human answer of 4 and a sampled one of 5 are a tree of 15
LENGTHS = Lengths({"train": 100, "test": 10}, 6.0, 4.0, 5.0, True, 21.0)
RATES = Rates(100.0, 200.0, 300.0, engine_s=50.0, child_s=7.0, between_s=8.0)


def recipe(**changes: Any) -> Recipe:
    content: dict[str, Any] = {"name": "c", "model": {"name": "m"}, "data": {"name": "demo"}, "iterations": [{}, {}]}
    return Recipe.model_validate(content | changes)


def seconds(found: Recipe, lengths: Lengths = LENGTHS) -> dict[str, float]:
    return {f"{line.iteration} {line.stage}": line.seconds for line in Plan(found, lengths, RATES, 10).lines()}


def test_every_stage_by_hand() -> None:
    found = seconds(recipe())
    # 100 train answers and 10 · (4 + 1) held-out ones of both players, 5 tokens each, 2 FLOPs a weight and token; a held-out prompt
    # is computed for the first answer, for the further ones, and for the greedy one
    assert found["0 sample"] == 2 * 50.0 + 2 * 10 * (200 * 5 + (100 + 2 * 30) * 6) / 100
    assert found["1 sample"] == 50.0 + 2 * 10 * (150 * 5 + (100 + 30) * 6) / 100
    # trees of 15 tokens, of 20 with the carried answer; held-out ones under both models
    assert found["0 score"] == 2 * 7 + 2 * 10 * (1500 + 2 * 150) / 200
    assert found["1 score"] == 2 * 7 + 2 * 10 * (2000 + 2 * 150) / 200
    assert found["0 train"] == 7 + 6 * 10 * 1500 * 2 / 300
    assert found["1 train"] == 7 + 6 * 10 * 2000 * 2 / 300
    assert "0 choose" not in found
    assert found["None import, tokenise"] == 21.0
    assert found["None between them"] == 15.0 + 2 * 8.0


def test_what_a_recipe_asks_for_is_counted() -> None:
    plain = seconds(recipe())
    assert seconds(recipe(training={"gradient_checkpointing": True}))["0 train"] == 7 + (plain["0 train"] - 7) * 4 / 3
    assert seconds(recipe(training={"stop_after_epochs": 1}))["0 train"] == 7 + (plain["0 train"] - 7) / 2
    assert seconds(recipe(carry_over=0))["1 train"] == plain["0 train"]
    rows = Lengths({"train": 100, "test": 10, "validation": 20}, 6.0, 4.0, 5.0, True, 21.0)
    data = {"name": "demo", "validation_size": 20}
    assert seconds(recipe(sft={}, data=data), rows)["None warm start"] == 7 + 6 * 10 * 100 * 10 * 3 / 300
    chooses = seconds(recipe(data=data, training={"line_search": [0.5], "choose_epoch": True}), rows)
    assert chooses["0 choose"] == 2 * 7 + 2 * 10 * (5 * 20 * 10) / 200  # θ_t, and γ 0.5 and 1 of two epochs


def test_what_does_not_fit_names_the_key() -> None:
    memory = {need.stage: need for need in Plan(recipe(), LENGTHS, RATES, 7_000_000_000).memory(8, 80e9, 4096, 32)}
    assert memory["train"].need > memory["train"].have
    assert memory["train"].remedy.startswith("training.gradient_checkpointing: true, training.sharding: fsdp2")
    spared = recipe(training={"gradient_checkpointing": True, "sharding": "fsdp2"})
    memory = {need.stage: need for need in Plan(spared, LENGTHS, RATES, 7_000_000_000).memory(8, 80e9, 4096, 32)}
    assert all(need.need < need.have for need in memory.values())


@pytest.mark.parametrize(("text", "found"), [("8xH100", (8, "H100")), ("h200", (1, "H200")), ("2xa100-40", (2, "A100-40"))])
def test_gpus_by_name(text: str, found: tuple[int, str]) -> None:
    assert parse_gpus(text) == found


@pytest.mark.parametrize("text", ["8xH99", "0xH100", "manyxH100", ""])
def test_gpus_that_nobody_knows(text: str) -> None:
    with pytest.raises(BadInput, match=", ".join(GPUS)):
        parse_gpus(text)


def test_a_warm_start_has_a_speed_of_its_own() -> None:
    """TRL's trainer pads and validates: taking the speed of self-play said half of what it took."""
    found = recipe(sft={"epochs": 1}, data={"name": "demo", "validation_size": 20})
    slow = Plan(found, LENGTHS, replace(RATES, sft=150.0), 10).lines()
    assert next(line.seconds for line in slow if line.stage == "warm start") == 7 + 6 * 10 * 100 * 10 / 150


def test_the_first_shard_of_a_model_tells_how_long_an_engine_starts() -> None:
    """The second one waited for its turn only, and the least wait once was taken for the engine's start."""
    first = _shard("a", seconds=48.0, started=100.0, ended=112.0)
    second = _shard("a", seconds=15.5, started=112.0, ended=117.5)
    other = _shard("b", seconds=35.0, started=200.0, ended=205.0)
    assert rates._engine_s([second, first, other]) == 33.0
    assert rates._engine_s([_shard("a", seconds=5.0, started=100.0, ended=105.0)]) == 60.0


def test_pauses_between_stages_are_counted_and_those_between_runs_are_not(tmp_path: Path) -> None:
    store = Store(tmp_path)
    turn = [("model", "10:00:10", 10.0), ("shard", "10:00:20", 8.0), ("shard", "10:00:21", 9.5), ("evaluation", "10:00:26", 3.0)]
    for number, (kind, created, seconds) in enumerate([*turn, ("evaluation", "12:00:00", 5.0)]):
        folder = tmp_path / "artifacts" / kind / str(number)
        folder.mkdir(parents=True)
        manifest = {"kind": kind, "created": f"2026-01-01T{created}Z", "facts": {"seconds": seconds}}
        (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    assert rates._between_s(store) == (1.5 + 2.0) / 2  # of two iterations: before the first shard, and before the evaluation


def _shard(model: str, **facts: float) -> dict[str, Any]:
    return {"facts": facts, "parents": [{"kind": "model", "digest": model}]}


def test_a_home_without_runs_knows_no_rates(tmp_path: Path, tiny_model: Path) -> None:
    assert measured(Store(tmp_path)) is None
    with pytest.raises(BadInput, match="tells this machine's speed; run the demo"):
        show(Store(tmp_path), recipe(), None, Console(file=io.StringIO()))


def test_a_plan_of_real_rows(tmp_path: Path, tiny_model: Path) -> None:
    """By the table: nothing was run in this home. It leaves only what a run would make first."""
    console = Console(file=io.StringIO(), width=120)
    found = recipe(model={"name": str(tiny_model)}, data={"name": "demo", "subset": 40, "test_size": 10})
    assert show(Store(tmp_path), found, "8xH100", console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "30 pairs" in text
    assert "taken to be as long as the human ones" in text
    assert sorted(path.name for path in (tmp_path / "artifacts").iterdir()) == ["encoded", "model", "prompts"]
