"""Scores are joined to pairs by their place alone, so the place must be proven."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin_core.contracts.tables import RowReader, id_lists
from spin_core.runtime.errors import Corrupt
from spin_core.scoring.scores import SHARD_SCORES, join_shards, read_scores


def pairs_of(ids: list[tuple[str, int]]) -> pa.Table:
    return pa.table(
        {
            "row_id": [row for row, _ in ids],
            "iteration": pa.array([t for _, t in ids], pa.int32()),
            "sample": pa.array([0] * len(ids), pa.int32()),
            "real_ids": [[1]] * len(ids),
        }
    )


IDS = [(f"{number // 2:04x}", number % 2) for number in range(50)]  # each row with two opponents' answers


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    """Pair n has the log-probs −n and −2n; scored in shards of seven."""
    shards = []
    for start in range(0, 50, 7):
        ids = pairs_of(IDS[start : start + 7])
        logps = [pa.array([float(-factor * (start + n)) for n in range(ids.num_rows)]) for factor in (1, 2)]
        shards.append(tmp_path / f"{start}.parquet")
        columns = [ids["row_id"], ids["iteration"], ids["sample"], *logps, pa.array([10] * ids.num_rows, pa.int32())]
        pq.write_table(pa.table(columns, schema=SHARD_SCORES), shards[-1])
    join_shards(shards, tmp_path / "scores.parquet")
    return tmp_path / "scores.parquet"


def test_row_i_of_the_scores_is_row_i_of_the_pairs(scores: Path, tmp_path: Path) -> None:
    pq.write_table(pairs_of(IDS), tmp_path / "pairs", row_group_size=9)
    found = read_scores(scores, tmp_path / "pairs")
    assert found.to_pydict() == {"real_logp": [float(-n) for n in range(50)], "generated_logp": [float(-2 * n) for n in range(50)]}


@pytest.mark.parametrize(
    "change",
    [
        lambda ids: [ids[1], ids[0], *ids[2:]],
        lambda ids: [(ids[0][0], 7), *ids[1:]],
        lambda ids: ids[:-1],
        lambda ids: [*ids, ("ffff", 0)],
        lambda ids: [],
    ],
    ids=["order", "iteration", "fewer", "more", "none"],
)
def test_scores_of_other_pairs_are_refused(
    scores: Path, tmp_path: Path, change: Callable[[list[tuple[str, int]]], list[tuple[str, int]]]
) -> None:
    """If it fails, a pair is trained with another's reference, which no later check would notice after the first step."""
    pq.write_table(pairs_of(change(IDS)), tmp_path / "pairs")
    with pytest.raises(Corrupt, match="row by row"):
        read_scores(scores, tmp_path / "pairs")


def test_scores_that_do_not_say_whose_they_are_are_refused(scores: Path, tmp_path: Path) -> None:
    pq.write_table(pairs_of(IDS), tmp_path / "pairs")
    pq.write_table(pq.read_table(scores).replace_schema_metadata(None), scores)
    with pytest.raises(Corrupt, match="row by row"):
        read_scores(scores, tmp_path / "pairs")


def test_ranges_of_rows_across_row_groups(tmp_path: Path) -> None:
    """In order, with the next one in the same group, and back."""
    rows = [{"row_id": str(n), "prompt_ids": list(range(n % 4))} for n in range(23)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows", row_group_size=5)
    reader = RowReader(tmp_path / "rows", ["prompt_ids", "row_id"])
    for start, stop in [*((start, start + 4) for start in range(0, 23, 4)), (3, 18), (0, 2), (22, 23)]:
        found = reader.read(start, stop)
        assert found["row_id"].to_pylist() == [row["row_id"] for row in rows[start:stop]]
        assert id_lists(found["prompt_ids"]) == [row["prompt_ids"] for row in rows[start:stop]]
