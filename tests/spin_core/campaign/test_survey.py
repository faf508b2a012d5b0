"""What `spinflow status` says of stages: done, would run, would run again and why. Nothing runs, so nothing here does."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from spin_core.campaign.ledger import Ledger
from spin_core.campaign.survey import survey
from spin_core.campaign.turn import TurnStages
from spin_core.campaign.walk import Played, walk
from spin_core.contracts.rows import ENCODED
from spin_core.contracts.tables import write_rows
from spin_core.generation.stage import Shard
from spin_core.recipe import Recipe
from spin_core.runtime.launcher import Stage
from spin_core.store import Ref, Store


def recipe(tiny_model: Path, **changes: Any) -> Recipe:
    content = {"name": "c", "model": {"name": str(tiny_model)}, "data": {"name": "demo"}, "generation": {"shard_rows": 2}}
    return Recipe.model_validate(content | {"iterations": [{}]} | changes)


class Builds:
    """A builder whose stages write no more than the survey looks at."""

    def __init__(self, store: Store, **gained: float) -> None:
        self._store, self._gained = store, gained

    def do(self, name: str, stage: Stage) -> Ref:
        def write(out: Path) -> None:
            for split, count in (("train", 4), ("test", 2), ("validation", 2)):
                rows = [{"row_id": str(i), "prompt_ids": [i], "real_ids": [2]} for i in range(count)]
                write_rows(out / f"{split}.parquet", rows, ENCODED)
            (out / "metrics.json").write_text(json.dumps(metrics(**self._gained)))

        return self._store.build(stage.spec(), write)

    def sample(self, name: str, shards: Sequence[Shard]) -> tuple[Ref, ...]:
        return tuple(self.do(name, shard) for shard in shards)

    def free_devices(self) -> None:
        pass


def metrics(**gained: float) -> dict[str, Any]:
    """Of an iteration that won so much in each figure, surely; higher is better."""
    sure = {name: {"value": value, "low": value - 0.01, "high": value + 0.01} for name, value in gained.items()}
    return {"splits": {"test": {"gained": sure}}, "figures": {name: {"unit": "share", "better": "higher"} for name in gained}}


def play(store: Store, found: Recipe, before: Played | None = None, opponent: int | None = None, won: float = 0.1) -> Played:
    """Leaves what a played iteration leaves."""
    before = before or Played()
    iteration = len(before.pairs)
    opponent = iteration if opponent is None else opponent
    played = walk(TurnStages.of(found, iteration, store.home), Builds(store, nll=won), before, opponent)
    Ledger(store, "c").note(iteration, found, played.made, opponent)
    return played


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
    assert list(lines)[:3] == ["0 prompts", "0 start", "0 encoded"]
    assert not (tmp_path / "artifacts").exists()


def test_a_played_iteration_is_done_and_the_next_would_run(played: Store, tiny_model: Path) -> None:
    lines = said(played, recipe(tiny_model, iterations=[{}, {}]))
    assert {state for name, state in lines.items() if name.startswith("0")} == {"done"}
    assert "1 test answers" not in lines  # of θ_1: iteration 0 sampled them
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
    new = [f"new {what} answers" for what in ("test", "more test", "validation", "more validation")]
    judged = [f"{who}judged-{name}" for who in ("start-", "") for name in ("nll", "checks", "lengths")]
    assert names[names.index("reference") :] == ["reference", "trained", "model", "scored", *new, *judged, "evaluation"]
    finer = said(store, recipe(tiny_model, **CHOOSES | {"training": {"line_search": [0.25, 0.5]}}))
    assert (finer["0 trained"], finer["0 model"]) == ("done", "again, because training.line_search changed")
    epochs = said(store, recipe(tiny_model, **CHOOSES | {"training": {"line_search": [0.5], "choose_epoch": True}}))
    assert epochs["0 trained"] == "again, because training.choose_epoch changed"


def test_a_choice_that_is_asked_for_later_or_no_more_trains_nothing_again(tmp_path: Path, tiny_model: Path) -> None:
    rows = {"data": CHOOSES["data"], "training": {"line_search": []}}
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
    first = play(store, found)
    play(store, found, first)
    theta_1, pairs = first.players[1].model, first.pairs
    lines = said(store, found)
    assert "0 held_out" not in lines
    assert lines["1 held_out"] == "done"
    turn, start = TurnStages.of(found, 1, store.home), Ledger(store, "c").turns()[1].ref("start")
    origin = turn.origin(start, theta_1)
    assert origin == start
    reference = turn.reference(origin, theta_1, pairs[0])
    assert (reference.model, reference.splits) == (start, ("train",))
    begins = TurnStages.of(found, 0, store.home).reference(start, start, pairs[0])
    assert begins.splits == ("train", "test")


@pytest.mark.parametrize(("depth", "carried"), [(0, 0), (1, 1), (2, 2), (9, 4)])
def test_so_many_iterations_are_carried_over(tmp_path: Path, tiny_model: Path, depth: int, carried: int) -> None:
    """The last one first: of iteration 4, those of 3, 2, …; `start: initial` takes all, whatever `carry_over` says."""
    earlier = [Ref("pairs", str(number), tmp_path) for number in range(4)]
    some = Ref("model", "m", tmp_path)
    for begins, expected in (("previous", carried), ("initial", 4)):
        found = recipe(tiny_model, carry_over=depth, iterations=[{}] * 5, training={"start": begins})
        stage = TurnStages.of(found, 4, tmp_path).pairs(some, some, (), {"test": ()}, earlier)
        assert [pairs.digest for pairs in stage.carried] == ["3", "2", "1", "0"][:expected]


def test_published_pairs_are_those_of_an_iteration_before_the_first(tmp_path: Path, tiny_model: Path) -> None:
    """They are carried into iteration 0, and into iteration 1 where two are carried."""
    (tmp_path / "pairs.jsonl").write_text("{}")
    found = recipe(tiny_model, carry_over=2, iterations=[{}, {}], start_pairs={"name": str(tmp_path / "pairs.jsonl")})
    store = Store(tmp_path / "home")
    one = walk(TurnStages.of(found, 0, store.home), Builds(store, nll=0.1), Played(), 0)
    two = walk(TurnStages.of(found, 1, store.home), Builds(store, nll=0.1), one, 1)
    published = one.made["start_pairs"]
    assert isinstance(published, Ref)
    assert (one.pairs, "start_pairs" in two.made) == ((published, one.made["pairs"]), False)
    for played, carried in ((one, 1), (two, 2)):
        pairs = played.made["pairs"]
        assert isinstance(pairs, Ref)
        parents = [parent["digest"] for parent in pairs.manifest["parents"] if parent["kind"] == "pairs"]
        assert (len(parents), parents[-1]) == (carried, published.digest)


def test_after_a_worse_iteration_the_next_starts_from_the_best(tmp_path: Path, tiny_model: Path) -> None:
    """Whom it played is in its answers' names; θ_2 stays in the ledger, and its pairs are carried over as they would have been."""
    found, store = recipe(tiny_model, iterations=[{}, {}, {}]), Store(tmp_path)
    one = play(store, found)
    two = play(store, found, one, won=-0.3)
    assert said(store, found)["2 train answers"] == "2 of 2 shards"  # of θ_1
    three = play(store, found, two, opponent=1)
    assert set(said(store, found).values()) == {"done"}
    train = three.made["train_shards"]
    assert isinstance(train, tuple)
    assert train[0].manifest["parents"][0]["digest"] == one.players[1].model.digest
    assert three.made["opponent"] == one.players[1].model
    assert [turn.opponent for turn in Ledger(store, "c").turns()] == [0, 1, 1]
    pairs = three.made["pairs"]
    assert isinstance(pairs, Ref)
    assert two.pairs[1].digest in [parent["digest"] for parent in pairs.manifest["parents"]]
    stays = recipe(tiny_model, iterations=[{}, {}, {}], stop={"on_worse": "go_on"})
    assert said(store, stays)["2 train answers"].startswith("2 of 2 shards")  # of θ_2


def test_a_warm_start_is_a_stage_after_encoding(tmp_path: Path, tiny_model: Path) -> None:
    """θ_0 is what SFT made; prompts are encoded once, by the tokenizer of the recipe's model."""
    found, store = recipe(tiny_model, data={"name": "demo", "validation_size": 3}, sft={}), Store(tmp_path)
    played = play(store, found)
    assert [name.removeprefix("0 ") for name in said(store, found)][:4] == ["prompts", "base", "encoded", "start"]
    assert played.players[0].model == played.made["start"] != played.made["base"]
    assert said(store, found.model_copy(update={"sft": None}))["0 start"] == "done"  # the recipe's model


def test_another_number_of_judged_answers_trains_nothing_again(played: Store, tiny_model: Path) -> None:
    lines = said(played, recipe(tiny_model, evaluation={"samples": 8}))
    assert {lines[name] for name in ("0 pairs", "0 model", "0 scored", "0 judged-nll")} == {"done"}
    assert lines["0 new more test answers"] == "1 of 1 shards, again, because generation.samples_per_prompt, samples changed"
    assert lines["0 evaluation"] == "again, because a stage before it would run again"
