"""Training rows on disk: each with its own scores, mapped and not loaded, written once."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.contracts.rows import SCORES_OF, TRAIN_FILE
from spin_core.scoring.scores import SHARD_SCORES, join_shards
from spin_core.training.rows import sizes_of, training_rows


def test_rows_are_mapped_with_their_own_scores(tmp_path: Path) -> None:
    count = 9000  # more than are read at once
    ids = {"row_id": [f"{n // 2}" for n in range(count)], "iteration": pa.array([n % 2 for n in range(count)], pa.int32())}
    ids["sample"] = pa.array([0] * count, pa.int32())
    lists = {
        name: pa.array([[n] * (1 + (n + shift) % 3) for n in range(count)], pa.list_(pa.int32()))
        for shift, name in enumerate(("prompt_ids", "real_ids", "generated_ids"))
    }
    pq.write_table(pa.table({**ids, **lists, "check": ["text"] * count}), tmp_path / TRAIN_FILE, row_group_size=4000)
    shard = [*ids.values(), [float(-n) for n in range(count)], [float(-2 * n) for n in range(count)], [1] * count]
    pq.write_table(pa.table(dict(zip(SHARD_SCORES.names, shard, strict=True)), schema=SHARD_SCORES), tmp_path / "shard")
    join_shards([tmp_path / "shard"], tmp_path / SCORES_OF["train"])

    before = pa.total_allocated_bytes()
    rows = training_rows(tmp_path, tmp_path, tmp_path)
    assert pa.total_allocated_bytes() - before < 20_000, "rows are held in memory"
    assert len(rows) == count
    for n in (0, 4095, 4096, 8999):
        row = rows[n]
        assert (row["reference_real"], row["reference_generated"], row["prompt_ids"][0]) == (-n, -2 * n, n)
    sizes = sizes_of(rows)
    assert sizes.row.tolist() == [n // 2 for n in range(count)]
    assert [sizes.prompt[7], sizes.real[7], sizes.generated[7]] == [2, 3, 1]

    written = (tmp_path / "rows.arrow").stat().st_mtime_ns
    training_rows(tmp_path, tmp_path, tmp_path)
    assert (tmp_path / "rows.arrow").stat().st_mtime_ns == written
