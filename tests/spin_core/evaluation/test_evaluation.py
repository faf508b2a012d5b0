"""What the held-out scores say, by hand."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.contracts.rows import GREEDY, PAIRS, PROMPTS, SCORES_OF, SHARD, TEST_FILE
from spin_core.contracts.tables import read_rows, write_rows
from spin_core.evaluation.stage import Evaluate, Side
from spin_core.judging.stage import Judge
from spin_core.recipe import EvaluationSettings
from spin_core.runtime.errors import Corrupt
from spin_core.runtime.launcher import Launcher
from spin_core.scoring.beta import Surprise
from spin_core.scoring.scores import SHARD_SCORES, join_shards
from spin_core.store import Ref, Spec, Store

ROWS = ["a", "b", "c", "d"]


def scored(store: Store, name: str, ids: list[str], logps: list[tuple[float, float]]) -> Ref:
    def write(out: Path) -> None:
        Surprise(6.0, 3.0).write(out)
        columns = [ids, [0] * len(ids), [0] * len(ids), *map(list, zip(*logps, strict=True)), [2] * len(ids)]
        pq.write_table(pa.table(dict(zip(SHARD_SCORES.names, columns, strict=True)), schema=SHARD_SCORES), out / "shard")
        join_shards([out / "shard"], out / SCORES_OF["test"])

    return store.build(Spec("reference", 1, {"name": name}), write)


class Parts:
    """Four held-out pairs of two human tokens each, the last with the same tokens on both sides, and a model's answers."""

    def __init__(self, folder: Path) -> None:
        self.store = Store(folder)
        turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
        real = {
            "real": turns,
            "generated": turns,
            "prompt_ids": [5],
            "real_ids": [6, 2],
            "finish_reason": "stop",
            "iteration": 0,
            "sample": 0,
        }
        checks = [{"kind": "exact", "value": "x"}, {"kind": "exact", "value": "y"}, None, None]
        checks_json = [json.dumps(check) if check else None for check in checks]
        rows = [
            {**real, "row_id": row, "generated_ids": [6, 2] if row == "d" else [7], "check": check}
            for row, check in zip(ROWS, checks_json, strict=True)
        ]
        prompts = [{"row_id": row["row_id"], "real": turns, "check": row["check"]} for row in rows]
        self.pairs = self.store.build(Spec("pairs", 1, {}), lambda out: write_rows(out / TEST_FILE, rows, PAIRS) and None)
        self.prompts = self.store.build(Spec("prompts", 1, {}), lambda out: write_rows(out / "test.parquet", prompts, PROMPTS) and None)
        self.launcher = Launcher(self.store)

    def answers(self, name: str, texts: list[str], tokens: int = 3, logps: list[float | None] | None = None) -> Ref:
        """Four answers to each row, the last of them greedy: `texts` of each row."""
        content = [
            {
                "row_id": row,
                "sample": sample,
                "prompt_ids": [5],
                "generated_ids": [7] * tokens,
                "finish_reason": "length" if text == "cut" else "stop",
                "generated": text,
                "logp": logp,
            }
            for row, logp in zip(ROWS, logps or [None] * 4, strict=True)
            for sample, text in zip((0, 1, 2, GREEDY), texts, strict=True)
        ]
        return self.store.build(Spec("shard", 1, {"name": name}), lambda out: write_rows(out / "shard.parquet", content, SHARD) and None)

    def side(self, name: str, scores: Ref, answers: Ref, judges: tuple[str, ...] = ("nll", "checks", "lengths")) -> Side:
        found = (Judge(judge, 0, self.prompts, {"test": (answers,)}, self.pairs, scores) for judge in judges)
        return Side(tuple(map(self.launcher.build, found)), scores, (answers,))

    def evaluate(self, beta: Any, reference: Ref, before: Side, after: Side) -> dict[str, Any]:
        made = self.launcher.build(Evaluate(EvaluationSettings(), 0, beta, self.pairs, reference, before.judged, before, after))
        return json.loads((made.path / "metrics.json").read_text())  # type: ignore[no-any-return]


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return Parts(tmp_path)


OLD = [(-4.0, -2.0), (-6.0, -3.0), (-5.0, -1.0), (-9.0, -9.0)]
NEW = [(-3.0, -2.5), (-7.0, -3.0), (-5.0, -2.0), (-1.0, -1.0)]


def test_players_are_compared_figure_by_figure(parts: Parts) -> None:
    old = parts.side(
        "old", scored(parts.store, "old", ROWS, OLD), parts.answers("old", ["no", "cut", "x", "no"], 4, [-2.0, -4.0, None, -6.0])
    )
    new = parts.side("new", scored(parts.store, "new", ROWS, NEW), parts.answers("new", ["x", "x", "x", "x"]))
    metrics = parts.evaluate(0.5, old.scored, old, new)
    test = metrics["splits"]["test"]
    before, after, gained = ({name: figure["value"] for name, figure in test[who].items()} for who in ("before", "after", "gained"))
    # row a wants x, row b wants y: a third and none of the draws are right, then all and none
    assert (before["checks"], after["checks"], gained["checks"]) == pytest.approx((1 / 6, 1 / 2, 1 / 3))
    assert (before["greedy"], after["greedy"]) == (0.0, 0.5)
    assert (before["nll"], after["nll"], gained["nll"]) == (24.0 / 8, 16.0 / 8, -1.0)
    assert (before["tokens"], after["tokens"], before["unfinished"]) == (4.0, 3.0, pytest.approx(1 / 3))
    assert (before["distinct"], after["distinct"]) == pytest.approx((1.0, 1 / 3))
    assert before["entropy"] == 4.0
    assert "entropy" not in after  # its engine gave no log-probs
    assert test["before"]["checks"]["prompts"] == 2
    assert test["gained"]["nll"]["low"] < -1.0 < test["gained"]["nll"]["high"]
    assert metrics["figures"]["nll"] == {"unit": "nats", "better": "lower"}


def test_the_game_is_counted_pair_by_pair(parts: Parts) -> None:
    answers = parts.answers("any", ["x", "x", "x", "x"])
    old, new = (parts.side(name, scored(parts.store, name, ROWS, logps), answers) for name, logps in (("old", OLD), ("new", NEW)))
    metrics = parts.evaluate(0.5, old.scored, old, new)
    game = metrics["splits"]["test"]["game"]
    # what each answer gained: (1, −0.5), (−1, 0), (0, −1); the pair without a difference does not play
    assert (game["won"]["value"], game["won"]["prompts"]) == (pytest.approx(2 / 3), 3)
    assert game["margin"]["value"] == pytest.approx(0.5 * (1.5 - 1.0 + 1.0) / 3)
    # of the pairs that differ: human answers gained 1, −1, 0, sampled ones −0.5, 0, −1; human ones had 4, 6 and 5 left
    figures = metrics["diagnostics"]["figures"]
    assert figures["gained_real"] == pytest.approx(0.0)
    assert (figures["margin"], figures["left"], figures["pushed_down"]) == pytest.approx((0.5, 5.0, 1.0))
    assert (figures["differing"], figures["entropy"]) == (0.75, None)
    assert metrics["diagnostics"]["warnings"] == {}  # of four pairs


def test_the_opponent_is_not_always_what_training_started_from(parts: Parts) -> None:
    """β is that of the reference; what was gained, that of the opponent on the same rows."""
    answers, origin = parts.answers("any", ["x", "x", "x", "x"]), scored(parts.store, "origin", ROWS, NEW)
    old, new = (parts.side(name, scored(parts.store, name, ROWS, logps), answers) for name, logps in (("old", OLD), ("new", NEW)))
    assert parts.evaluate("auto", old.scored, old, new) == parts.evaluate("auto", origin, old, new)


def test_scores_in_another_order_are_refused(parts: Parts) -> None:
    """If it fails, a pair is judged by another's scores."""
    answers = parts.answers("any", ["x", "x", "x", "x"])
    old, new = scored(parts.store, "old", ROWS, OLD), scored(parts.store, "new", ROWS[::-1], NEW)
    with pytest.raises(Corrupt, match="row by row"):
        parts.evaluate(0.5, old, parts.side("old", old, answers, ("checks",)), parts.side("new", new, answers, ("checks",)))


def test_what_an_engine_refused_is_of_nobody(parts: Parts) -> None:
    """A player is judged by the rows that it answered, and compared over those that both did."""
    old = parts.side("old", scored(parts.store, "old", ROWS, OLD), parts.answers("old", ["no"] * 4))
    some = [row for row in read_rows(old.answers[0].path / "shard.parquet") if row["row_id"] != "a"]
    refused = parts.store.build(Spec("shard", 1, {"name": "some"}), lambda out: write_rows(out / "shard.parquet", some, SHARD) and None)
    new = parts.side("new", scored(parts.store, "new", ROWS, NEW), refused)
    test = parts.evaluate(0.5, old.scored, old, new)["splits"]["test"]
    assert [test[who]["tokens"]["prompts"] for who in ("before", "after", "gained")] == [4, 3, 3]
