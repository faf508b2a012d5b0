"""What `spinflow status` says of stages: done, would run, would run again and why. Nothing runs, so nothing here does."""

import json
from pathlib import Path
from typing import Any

import pytest

from spin_core.campaign.ledger import Ledger
from spin_core.campaign.plan import survey
from spin_core.campaign.turn import TurnStages
from spin_core.contracts.rows import ENCODED
from spin_core.contracts.tables import write_rows
from spin_core.recipe import Recipe
from spin_core.runtime.launcher import Stage
from spin_core.store import Ref, Store


def recipe(tiny_model: Path, **changes: Any) -> Recipe:
    content = {"name": "c", "model": {"name": str(tiny_model)}, "data": {"name": "demo"}, "generation": {"shard_rows": 2}}
    return Recipe.model_validate(content | {"iterations": [{}]} | changes)


@pytest.fixture
def played(tmp_path: Path, tiny_model: Path) -> Store:
    """A store in which one iteration was played, by stages that wrote no more than the survey looks at."""
    store = Store(tmp_path)

    def build(stage: Stage) -> Ref:
        def write(out: Path) -> None:
            for split, count in (("train", 4), ("test", 2)):
                rows = [{"row_id": str(i), "prompt_ids": [i], "real_ids": [2]} for i in range(count)]
                write_rows(out / f"{split}.parquet", rows, ENCODED)
            (out / "metrics.json").write_text(json.dumps({"before": {"check_accuracy": None}, "after": {"check_accuracy": None}}))

        return store.build(stage.spec(), write)

    found = recipe(tiny_model)
    turn = TurnStages.of(found, 0, store.home)
    start, prompts = build(turn.start()), build(turn.prompts())
    encoded = build(turn.encoded(start, prompts))
    test, train = (tuple(map(build, turn.shards(start, encoded, split))) for split in ("test", "train"))
    pairs = build(turn.pairs(prompts, encoded, train, test, None))
    reference = build(turn.reference(start, pairs))
    player = build(turn.player(start, pairs, reference))
    scored, new = build(turn.scored(player, pairs)), tuple(map(build, turn.new_shards(player, encoded)))
    verdict = build(turn.verdict(pairs, reference, scored, test, new))
    made = {"prompts": prompts, "start": start, "encoded": encoded, "opponent": start, "pairs": pairs, "reference": reference}
    made |= {"model": player, "scored": scored, "evaluation": verdict}
    Ledger(store, "c").note(0, found, {**made, "test_shards": test, "train_shards": train, "new_shards": new})
    return store


def said(store: Store, found: Recipe) -> dict[str, str]:
    return {f"{line.iteration} {line.stage}": "done" if line.done else line.why or "would run" for line in survey(store, found)}


def test_nothing_is_there_yet(tmp_path: Path, tiny_model: Path) -> None:
    lines = said(Store(tmp_path), recipe(tiny_model))
    assert set(lines.values()) == {"would run"}
    assert list(lines)[:3] == ["0 start", "0 prompts", "0 encoded"]
    assert not (tmp_path / "artifacts").exists()


def test_a_played_iteration_is_done_and_the_next_would_run(played: Store, tiny_model: Path) -> None:
    lines = said(played, recipe(tiny_model, iterations=[{}, {}]))
    assert {state for name, state in lines.items() if name.startswith("0")} == {"done"}
    assert lines["1 test answers"] == "done"  # of θ_1: iteration 0 sampled them
    assert lines["1 train answers"] == "2 of 2 shards"
    assert lines["1 model"] == "would run"


@pytest.mark.parametrize(
    ("changes", "stage", "why", "done"),
    [
        ({"training": {"beta": 0.2}}, "0 model", "again, because training.beta changed", "0 reference"),
        ({"training": {"save_steps": 3}}, None, "", "0 evaluation"),
        ({"generation": {"shard_rows": 2, "temperature": 0.5}}, "0 pairs", "again, because a stage before it would run again", "0 encoded"),
        (
            {"generation": {"shard_rows": 2, "temperature": 0.5}},
            "0 train answers",
            "2 of 2 shards, again, because generation.temperature changed",
            "0 encoded",
        ),
        ({"data": {"name": "demo", "test_size": 7}}, "0 prompts", "again, because data.test_size changed", "0 start"),
    ],
)
def test_a_change_says_what_runs_again_and_why(
    played: Store, tiny_model: Path, changes: dict[str, Any], stage: str | None, why: str, done: str
) -> None:
    lines = said(played, recipe(tiny_model, **changes))
    assert lines[done] == "done"
    if stage is None:
        assert set(lines.values()) == {"done"}
    else:
        assert lines[stage] == why
