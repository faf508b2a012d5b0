"""The stop rule and the choice of the next iteration."""

import json
from pathlib import Path
from typing import Any

import pytest

from spin_core.campaign.ledger import Ledger
from spin_core.campaign.rules import Outcome, best_player, end_of, gain_of, made_it_worse, most_won, next_iteration, next_opponent
from spin_core.campaign.workspace import link
from spin_core.recipe import Recipe, StopSettings
from spin_core.runtime.errors import BadInput
from spin_core.store import Ref, Spec, Store


def outcome(value: float, half: float = 0.01, opponent: int = 0, *, metric: str = "checks", better: str = "higher", **more: Any) -> Outcome:
    """A turn that won `value` ± `half` in one figure."""
    gained = {metric: {"value": value, "low": value - half, "high": value + half}}
    won = {"value": 0.9, "low": 0.8, "high": 0.95}
    splits = {"test": {"gained": gained, "game": {"won": won}}}
    return Outcome(opponent, {"splits": splits, "figures": {metric: {"unit": "share", "better": better}}}, **more)


@pytest.mark.parametrize(
    ("keys", "gains", "says"),
    [
        ({}, [-0.5], ""),
        ({"min_gain": 0.0}, [0.0], ""),
        ({"min_gain": 0.0}, [-0.1], "checks won -0.1, less than stop.min_gain=0"),
        ({"min_gain": 0.1}, [0.3, 0.05], "checks won +0.05"),
        ({"min_gain": 0.1, "patience": 2}, [0.05], ""),
        ({"min_gain": 0.1, "patience": 2}, [0.3, 0.05], ""),
        ({"min_gain": 0.1, "patience": 2}, [0.3, 0.05, 0.02], "checks won +0.05, +0.02"),
        ({"on_worse": "stop"}, [-0.1], "it lost 0.1 in checks"),
        ({"on_worse": "stop", "worse_than": 0.2}, [-0.1], ""),
    ],
)
def test_when_a_campaign_ends(keys: dict[str, Any], gains: list[float], says: str) -> None:
    found = end_of([outcome(gain, opponent=number) for number, gain in enumerate(gains)], StopSettings(**keys))
    assert says in found
    assert bool(found) is bool(says)


def test_worse_is_what_chance_does_not_explain() -> None:
    """Else a campaign throws away an iteration for the draw of its held-out answers."""
    assert made_it_worse(outcome(-0.1, 0.05), StopSettings())
    assert not made_it_worse(outcome(-0.1, 0.15), StopSettings())
    assert not made_it_worse(outcome(-0.1, 0.05), StopSettings(worse_than=0.1))
    assert made_it_worse(outcome(0.1, 0.05, metric="nll", better="lower"), StopSettings(metric="nll"))
    assert not made_it_worse(outcome(-0.1, 0.05, metric="nll", better="lower"), StopSettings())


def test_the_best_is_found_along_who_played_whom() -> None:
    stop = StopSettings()
    chain = [outcome(0.2), outcome(-0.3, opponent=1), outcome(0.05, opponent=1)]
    assert [best_player(chain[:count], stop) for count in range(4)] == [0, 1, 1, 3]
    assert [next_opponent(chain[:count], stop) for count in range(4)] == [0, 1, 1, 3]
    assert next_opponent(chain[:2], StopSettings(on_worse="go_on")) == 2
    assert best_player([outcome(0.0)], stop) == 0  # nothing was won: the one that is there already


def two_figures(checks: tuple[float, float], nll: float, opponent: int) -> Outcome:
    """A turn that won checks ± and nats a token (below zero is better)."""
    splits = {name: outcome(*checks, opponent).metrics["splits"]["test"]["gained"] for name in ("test", "validation")}
    likelier = {"nll": {"value": nll, "low": nll - 0.02, "high": nll + 0.02}}
    figures = {"checks": {"unit": "share", "better": "higher"}, "nll": {"unit": "nats", "better": "lower"}}
    return Outcome(opponent, {"splits": {name: {"gained": gained | likelier} for name, gained in splits.items()}, "figures": figures})


def test_of_players_that_chance_could_put_beside_each_other_the_likelier_one_is_best() -> None:
    """SmolLM2 on the demo's rows after three epochs of SFT, 64 validation rows: the second was lucky in checks, the fifth is best."""
    won = [((0.078, 0.071), -0.010), ((-0.039, 0.075), -0.008), ((0.016, 0.075), -0.037), ((0.0, 0.067), -0.013)]
    real = [two_figures(checks, nll, number) for number, (checks, nll) in enumerate(won)]
    assert [best_player(real[:count], StopSettings()) for count in range(5)] == [0, 1, 2, 3, 4]
    assert most_won(real, StopSettings()) == 1
    sure = [two_figures((0.2, 0.05), -0.01, 0), two_figures((-0.2, 0.05), -0.5, 1)]  # likelier, but worse for sure
    assert best_player(sure, StopSettings()) == 1
    lost = [two_figures((0.001, 0.2), -0.01, 0), two_figures((-0.1, 0.05), -0.5, 1)]  # θ_0 could be beside it, but it lost for sure
    assert [best_player(lost, StopSettings()), next_opponent(lost, StopSettings())] == [1, 1]
    drift = [two_figures((0.2, 0.05), -0.01, 0), *(two_figures((-0.06, 0.07), -0.01, number) for number in (1, 2, 3))]
    assert [best_player(drift[:count], StopSettings()) for count in (1, 2, 3, 4)] == [1, 2, 2, 2]  # not down and down, each step by chance


def test_without_checks_the_likelihood_counts_and_the_game_can() -> None:
    found = outcome(-0.1, metric="nll", better="lower")
    assert gain_of(found.metrics, StopSettings()).metric == "nll"
    game = gain_of(found.metrics, StopSettings(metric="game"))
    assert (game.value, game.low, game.high) == pytest.approx((0.4, 0.3, 0.45))


@pytest.mark.parametrize(
    ("metric", "better", "says"), [("chekcs", "higher", "there are game, tokens"), ("tokens", None, "neither more nor less")]
)
def test_a_metric_that_cannot_count_is_named(metric: str, better: Any, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        gain_of(outcome(0.1, metric="tokens", better=better).metrics, StopSettings(metric=metric))


@pytest.mark.parametrize(("won", "stop", "says"), [(True, True, "no model better than the opponent"), (True, False, ""), (False, True, "")])
def test_a_line_search_that_won_nothing_ends_the_campaign(won: bool, stop: bool, says: str) -> None:
    """Unless the recipe says otherwise: new answers of the same model may still teach something."""
    found = end_of([outcome(0.0, nothing_won=won)], StopSettings(nothing_won=stop))
    assert says in found
    assert bool(found) is bool(says)


def recipe(**changes: Any) -> Recipe:
    content = {"name": "c", "model": {"name": "m"}, "data": {"name": "demo"}, "iterations": [{}, {}]}
    return Recipe.model_validate(content | changes)


def made(store: Store, kind: str, number: int, tag: str = "") -> Ref:
    metrics = outcome(-0.1, 0.2).metrics
    return store.build(
        Spec(kind, 1, {"t": number, "tag": tag}), lambda out: (out / "metrics.json").write_text(json.dumps(metrics)) and None
    )


def play(store: Store, found: Recipe, iteration: int, tag: str = "") -> None:
    """Leaves behind what a played iteration leaves."""
    names = {"evaluation": made(store, "evaluation", iteration, tag), "model": made(store, "model", iteration, tag)}
    names["start"] = made(store, "model", -1)
    shards = {f"{name}_shards": (made(store, "shard", iteration, tag),) for name in ("train", "test", "new")}
    Ledger(store, "c").note(iteration, found, {**names, **shards}, iteration)
    link(store, "c", found.stop)


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
        ({"training": {"beta": "auto", "tokens_per_micro_batch": 8}}, None),  # of speed: after an out-of-memory, say
        ({"stop": {"min_gain": 0.0}}, None),
        ({"iterations": [{}, {"beta": "auto"}]}, None),  # what it was already
    ],
)
def test_a_changed_recipe_is_played_anew_where_it_changes_results(tmp_path: Path, changes: dict[str, Any], then: int | None) -> None:
    """Else the night after an edit says that all is done; and one that only saves memory plays everything again."""
    store, found = Store(tmp_path), recipe()
    play(store, found, 0)
    play(store, found, 1)
    assert next_iteration(Ledger(store, "c").turns(), recipe(**changes))[0] == then


def test_a_stopped_campaign_stays_stopped(tmp_path: Path) -> None:
    store, found = Store(tmp_path), recipe(stop={"min_gain": 0.0})
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
    assert (folder / "best").resolve() == made(store, "model", -1).path  # both iterations lost
    play(store, found, 0, tag="other")
    assert [turn.iteration for turn in Ledger(store, "c").turns()] == [0]
    assert sorted(path.name for path in folder.glob("iter-*")) == ["iter-0"]
    assert (folder / "iter-0" / "train-shard-000").resolve() == made(store, "shard", 0, "other").path


def test_a_turn_that_played_another_opponent_is_played_again(tmp_path: Path) -> None:
    """As after a change of stop.on_worse: what comes after a worse iteration starts from another model then."""
    store, found = Store(tmp_path), recipe(stop={"on_worse": "go_on"})
    play(store, found, 0)
    play(store, found, 1)
    assert next_iteration(Ledger(store, "c").turns(), found)[0] is None
    sure = recipe(stop={"on_worse": "back_to_best", "metric": "checks"})
    turns = [*Ledger(store, "c").turns()]
    turns[0].metrics["splits"]["test"]["gained"]["checks"]["high"] = -0.05  # worse for sure
    assert next_iteration(turns, sure)[0] == 1
