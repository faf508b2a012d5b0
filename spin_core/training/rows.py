"""The pairs as training reads them: on disk in Arrow's own format, which every device's process maps and none holds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from spin_core.contracts.rows import IDS, SCORES_OF, TRAIN_FILE
from spin_core.contracts.tables import iter_tables
from spin_core.scoring.scores import read_scores
from spin_core.store.artifacts import nobody
from spin_core.store.locks import locked
from spin_core.training.plan import Sizes

_IDS = ("prompt_ids", "real_ids", "generated_ids")
_SCHEMA = pa.schema(
    [
        ("row_id", pa.string()),
        *((name, IDS) for name in _IDS),
        ("reference_real", pa.float64()),  # nats, under θ_t
        ("reference_generated", pa.float64()),
    ]
)


def training_rows(pairs: Path, reference: Path, work: Path) -> Dataset:
    """The train pairs with their reference log-probs, written into `work` by whichever process comes first.

    Raises Corrupt where the scores are not those of these pairs, row by row.
    """
    file = work / "rows.arrow"
    with locked(work / "rows.lock", nobody):
        if not file.exists():
            part = file.with_suffix(".part")
            _write(pairs / TRAIN_FILE, reference / SCORES_OF["train"], part)
            os.replace(part, file)
    return Dataset.from_file(str(file))


def _write(pairs: Path, scores: Path, target: Path) -> None:
    found, start = read_scores(scores, pairs), 0
    with pa.ipc.new_stream(target, _SCHEMA) as sink:
        for table in iter_tables(pairs, ["row_id", *_IDS]):
            own = found.slice(start, table.num_rows)
            start += table.num_rows
            sink.write_table(pa.table([*table.columns, *own.columns], schema=_SCHEMA))


def sizes_of(rows: Dataset) -> Sizes:
    """What the plan needs of them; of the ids only the lists' offsets are read."""
    row = rows.data.column("row_id").combine_chunks().dictionary_encode().indices
    lengths = (pc.list_value_length(rows.data.column(name)).combine_chunks() for name in _IDS)
    return Sizes(*(column.to_numpy().astype(np.int64) for column in (row, *lengths)))
