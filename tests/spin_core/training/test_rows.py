"""Training rows on disk: each with its own scores, mapped and not loaded, written once."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spin_core.contracts.rows import IDS, PAIRS, SCORES_OF, TRAIN_FILE
from spin_core.scoring.scores import SHARD_SCORES, join_shards
from spin_core.training.rows import sizes_of, training_rows

PAIR_IDS = pa.schema([PAIRS.field(name) for name in ("row_id", "iteration", "sample", "generated_ids")])


@settings(deadline=None)  # a busy machine is no fault
@given(st.data(), st.sampled_from(["hardest", "longest", "most_likely"]))
def test_of_a_rows_samples_of_one_iteration_the_best_stays(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, pairing: str
) -> None:
    """Judged pair by pair as the recipe words it; ties go to the first sample, and with one sample a row nothing changes."""
    folder = tmp_path_factory.mktemp("pairs")
    samples = data.draw(st.integers(1, 4))
    ids = [(row, t, k) for t in (1, 0) for row in "abc" for k in range(samples)]  # carried pairs stand after the fresh ones
    logps = data.draw(st.lists(st.sampled_from([-1.0, -2.0, -3.0, -6.0]), min_size=len(ids), max_size=len(ids)))
    lengths = data.draw(st.lists(st.integers(1, 3), min_size=len(ids), max_size=len(ids)))
    columns = dict(zip(("row_id", "iteration", "sample"), map(list, zip(*ids, strict=True)), strict=True))
    pairs = pa.Table.from_pydict({**columns, "generated_ids": [[7] * length for length in lengths]}, schema=PAIR_IDS)
    pairs = pairs.append_column("prompt_ids", pa.array([[n] for n in range(len(ids))], IDS)).append_column(
        "real_ids", pa.array([[5]] * len(ids), IDS)
    )
    pq.write_table(pairs, folder / TRAIN_FILE)
    scores = [*columns.values(), [-1.0] * len(ids), logps, [1] * len(ids)]
    pq.write_table(pa.table(dict(zip(SHARD_SCORES.names, scores, strict=True)), schema=SHARD_SCORES), folder / "shard")
    join_shards([folder / "shard"], folder / SCORES_OF["train"])

    value = {"hardest": lambda n: logps[n] / lengths[n], "longest": lambda n: lengths[n], "most_likely": lambda n: logps[n]}[pairing]
    groups = [range(start, start + samples) for start in range(0, len(ids), samples)]
    kept = [row["prompt_ids"][0] for row in training_rows(folder, folder, folder, pairing)]
    assert kept == [max(group, key=value) for group in groups]  # of equal ones max takes the first


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
