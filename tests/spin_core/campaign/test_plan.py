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


def play(store: Store, found: Recipe, iteration: int = 0, before: tuple[Ref, tuple[Ref, ...]] | None = None) -> tuple[Ref, tuple[Ref, ...]]:
    """Leaves what a played iteration leaves, by stages that write no more than the survey looks at."""

    def build(stage: Stage) -> Ref:
        def write(out: Path) -> None:
            for split, count in (("train", 4), ("test", 2)):
                rows = [{"row_id": str(i), "prompt_ids": [i], "real_ids": [2]} for i in range(count)]
                write_rows(out / f"{split}.parquet", rows, ENCODED)
            (out / "metrics.json").write_text(json.dumps({"before": {"check_accuracy": None}, "after": {"check_accuracy": None}}))

        return store.build(stage.spec(), write)

    turn = TurnStages.of(found, iteration, store.home)
    start, prompts = build(turn.start()), build(turn.prompts())
    encoded = build(turn.encoded(start, prompts))
    opponent, earlier = before or (start, ())
    origin = turn.origin(start, opponent)
    test, train = (tuple(map(build, turn.shards(opponent, encoded, split))) for split in ("test", "train"))
    pairs = build(turn.pairs(prompts, encoded, train, test, earlier))
    reference = build(turn.reference(origin, opponent, pairs))
    held_out = reference if origin == opponent else build(turn.held_out(opponent, pairs))
    trained = build(turn.player(origin, pairs, reference))
    player = build(turn.choice(opponent, trained, encoded)) if turn.chooses else trained
    scored, new = build(turn.held_out(player, pairs)), tuple(map(build, turn.new_shards(player, encoded)))
    verdict = build(turn.verdict(pairs, reference, held_out, scored, test, new))
    made = {"prompts": prompts, "start": start, "encoded": encoded, "opponent": opponent, "pairs": pairs, "reference": reference}
    made |= {"model": player, "scored": scored, "evaluation": verdict} | ({"trained": trained} if turn.chooses else {})
    Ledger(store, "c").note(iteration, found, {**made, "test_shards": test, "train_shards": train, "new_shards": new})
    return player, (*earlier, pairs)


@pytest.fixture
def played(tmp_path: Path, tiny_model: Path) -> Store:
    """A store in which one iteration was played."""
    store = Store(tmp_path)
    play(store, recipe(tiny_model))
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


CHOOSES = {"data": {"name": "demo", "validation_size": 3}, "training": {"line_search": [0.5]}}


def test_the_choice_is_a_stage_between_training_and_scoring(tmp_path: Path, tiny_model: Path) -> None:
    found, store = recipe(tiny_model, **CHOOSES), Store(tmp_path)
    names = [line.split()[1] for line in said(store, found)]
    assert names[-3:] == ["trained", "model", "evaluation"]
    play(store, found)
    lines = said(store, found)
    assert set(lines.values()) == {"done"}
    names = [name.removeprefix("0 ") for name in lines]
    assert names[names.index("reference") :] == ["reference", "trained", "model", "scored", "new answers", "evaluation"]
    finer = said(store, recipe(tiny_model, **CHOOSES | {"training": {"line_search": [0.25, 0.5]}}))
    assert (finer["0 trained"], finer["0 model"]) == ("done", "again, because training.line_search changed")
    epochs = said(store, recipe(tiny_model, **CHOOSES | {"training": {"line_search": [0.5], "choose_epoch": True}}))
    assert epochs["0 trained"] == "again, because training.choose_epoch changed"


def test_a_choice_that_is_asked_for_later_or_no_more_trains_nothing_again(tmp_path: Path, tiny_model: Path) -> None:
    rows = {"data": CHOOSES["data"]}
    without, chooses, store = recipe(tiny_model, **rows), recipe(tiny_model, **CHOOSES), Store(tmp_path)
    play(store, without)
    lines = said(store, chooses)
    assert (lines["0 trained"], lines["0 model"], lines["0 scored"]) == (
        "done",
        "would run",
        "again, because a stage before it would run again",
    )
    play(store, chooses)
    assert said(store, without)["0 model"] == "done"


def test_an_iteration_from_theta_0_scores_under_both_models(tmp_path: Path, tiny_model: Path) -> None:
    """Reference and training are of θ_0; the held-out rows are compared with θ_t, whose answers they have."""
    found, store = recipe(tiny_model, iterations=[{}, {}], training={"start": "initial"}), Store(tmp_path)
    theta_1, pairs = play(store, found, 0)
    play(store, found, 1, (theta_1, pairs))
    lines = said(store, found)
    assert "0 held_out" not in lines
    assert lines["1 held_out"] == "done"
    turn, start = TurnStages.of(found, 1, store.home), Ledger(store, "c").turns()[1].ref("start")
    origin = turn.origin(start, theta_1)
    assert origin == start
    reference = turn.reference(origin, theta_1, pairs[0])
    assert (reference.model, reference.splits) == (start, ("train",))
    first = TurnStages.of(found, 0, store.home).reference(start, start, pairs[0])
    assert first.splits == ("train", "test")


@pytest.mark.parametrize(("depth", "carried"), [(0, 0), (1, 1), (2, 2), (9, 4)])
def test_so_many_iterations_are_carried_over(tmp_path: Path, tiny_model: Path, depth: int, carried: int) -> None:
    """The last one first: of iteration 4, those of 3, 2, …; `start: initial` takes all, whatever `carry_over` says."""
    earlier = [Ref("pairs", str(number), tmp_path) for number in range(4)]
    some = Ref("model", "m", tmp_path)
    for begins, expected in (("previous", carried), ("initial", 4)):
        found = recipe(tiny_model, carry_over=depth, iterations=[{}] * 5, training={"start": begins})
        stage = TurnStages.of(found, 4, tmp_path).pairs(some, some, (), (), earlier)
        assert [pairs.digest for pairs in stage.carried] == ["3", "2", "1", "0"][:expected]
