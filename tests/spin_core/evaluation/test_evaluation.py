"""What the held-out scores say, by hand."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.contracts.rows import PAIRS, SCORES_OF, SHARD, TEST_FILE
from spin_core.contracts.tables import read_rows, write_rows
from spin_core.evaluation.stage import Evaluate
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


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Store, Ref, Ref]:
    """Four held-out pairs of two human tokens each, the last with the same tokens on both sides, and a model's answers."""
    store = Store(tmp_path)
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    real = {
        "real": turns,
        "generated": turns,
        "prompt_ids": [5],
        "real_ids": [6, 2],
        "finish_reason": "stop",
        "check": None,
        "iteration": 0,
        "sample": 0,
    }
    rows = [{**real, "row_id": row, "generated_ids": [6, 2] if row == "d" else [7]} for row in ROWS]
    answers = [{"row_id": row, "prompt_ids": [5], "generated_ids": [7, 8, 9], "finish_reason": "stop", "generated": "x"} for row in ROWS]
    pairs = store.build(Spec("pairs", 1, {}), lambda out: write_rows(out / TEST_FILE, rows, PAIRS) and None)
    shard = store.build(Spec("shard", 1, {}), lambda out: write_rows(out / "shard.parquet", answers, SHARD) and None)
    return store, pairs, shard


OLD = [(-4.0, -2.0), (-6.0, -3.0), (-5.0, -1.0), (-9.0, -9.0)]
NEW = [(-3.0, -2.5), (-7.0, -3.0), (-5.0, -2.0), (-1.0, -1.0)]


def test_the_game_is_counted_pair_by_pair(parts: tuple[Store, Ref, Ref]) -> None:
    store, pairs, shard = parts
    old, new = scored(store, "old", ROWS, OLD), scored(store, "new", ROWS, NEW)
    made = Launcher(store).build(Evaluate(EvaluationSettings(), 0, 0.5, pairs, old, old, new, (shard,), (shard,)))
    metrics = json.loads((made.path / "metrics.json").read_text())
    # what each answer gained: (1, −0.5), (−1, 0), (0, −1); the pair without a difference does not play
    assert metrics["game"] == {"accuracy": 2 / 3, "margin": pytest.approx(0.5 * (1.5 - 1.0 + 1.0) / 3), "pairs": 3}
    assert (metrics["before"]["nll"], metrics["after"]["nll"]) == (24.0 / 8, 16.0 / 8)


def test_the_opponent_is_not_always_what_training_started_from(parts: tuple[Store, Ref, Ref]) -> None:
    """β is that of the reference; what was gained, that of the opponent on the same rows."""
    store, pairs, shard = parts
    old, new, origin = scored(store, "old", ROWS, OLD), scored(store, "new", ROWS, NEW), scored(store, "origin", ROWS, NEW)
    same = Evaluate(EvaluationSettings(), 0, "auto", pairs, old, old, new, (shard,), (shard,))
    other = Evaluate(EvaluationSettings(), 0, "auto", pairs, origin, old, new, (shard,), (shard,))
    assert [ref.digest for ref in other.spec().parents] == [ref.digest for ref in (pairs, origin, old, new, shard, shard)]
    found = [json.loads((Launcher(store).build(stage).path / "metrics.json").read_text()) for stage in (same, other)]
    assert found[0] == found[1]


def test_entropy_where_the_engine_gave_log_probs_and_diagnostics(parts: tuple[Store, Ref, Ref]) -> None:
    """An engine that gives none, or an older one, leaves the figure out."""
    store, pairs, shard = parts
    old, new = scored(store, "old", ROWS, OLD), scored(store, "new", ROWS, NEW)
    given = read_rows(shard.path / "shard.parquet")

    def write(out: Path) -> None:
        write_rows(out / "shard.parquet", [row | {"logp": logp} for row, logp in zip(given, (-2.0, -4.0, None, -6.0), strict=True)], SHARD)

    drawn = store.build(Spec("shard", 1, {"logp": True}), write)
    made = Launcher(store).build(Evaluate(EvaluationSettings(), 0, 0.5, pairs, old, old, new, (shard,), (drawn,)))
    metrics = json.loads((made.path / "metrics.json").read_text())
    assert (metrics["before"]["entropy"], metrics["after"]["entropy"]) == (None, 4.0)
    figures = metrics["diagnostics"]["figures"]
    # of the pairs that differ: human answers gained 1, −1, 0, sampled ones −0.5, 0, −1; human ones had 4, 6 and 5 left
    assert figures["gained_real"] == pytest.approx(0.0)
    assert (figures["margin"], figures["left"], figures["pushed_down"]) == pytest.approx((0.5, 5.0, 1.0))
    assert (figures["differing"], figures["entropy"]) == (0.75, None)
    assert metrics["diagnostics"]["warnings"] == {}  # of four pairs
    assert made.facts["warnings"] == []


def test_scores_in_another_order_are_refused(parts: tuple[Store, Ref, Ref]) -> None:
    """If it fails, a pair is judged by another's scores."""
    store, pairs, shard = parts
    old, new = scored(store, "old", ROWS, OLD), scored(store, "new", ROWS[::-1], NEW)
    with pytest.raises(Corrupt, match="row by row"):
        Launcher(store).build(Evaluate(EvaluationSettings(), 0, 0.5, pairs, old, old, new, (shard,), (shard,)))
