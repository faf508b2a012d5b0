"""The pairs as training reads them: on disk in Arrow's own format, which every device's process maps and none holds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset
from numpy.typing import NDArray

from spin_core.contracts.rows import IDS, PAIRS_OF, SCORES_OF
from spin_core.contracts.tables import iter_tables
from spin_core.scoring.scores import read_scores
from spin_core.store.locks import locked, nobody
from spin_core.training.history import newer_answers
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
_NEWER = pa.field("newer", pa.int64())  # a row of the same file, −1 for none; only where there is history


def training_rows(
    pairs: Path, reference: Path, work: Path, pairing: str = "all", split: str = "train", *, history: bool = False
) -> Dataset:
    """The pairs of a split that `training.pairing` chooses, with their reference log-probs, and with `history` the number of the
    row whose sampled answer is the `newer` one (see `newer_answers`).

    They are written into `work` by whichever process comes first.

    Raises Corrupt where the scores are not those of these pairs, row by row.
    """
    file = work / ("rows.arrow" if split == "train" else f"{split}.arrow")
    with locked(work / "rows.lock", nobody):
        if not file.exists():
            part = file.with_suffix(".part")
            _write(pairs / PAIRS_OF[split], reference / SCORES_OF[split], part, pairing, history)
            os.replace(part, file)
    return Dataset.from_file(str(file))


def _write(pairs: Path, scores: Path, target: Path, pairing: str, history: bool) -> None:
    found, start = read_scores(scores, pairs), 0
    keep = None if pairing == "all" else _chosen(pairs, found["generated_logp"].to_numpy(), pairing)
    newer = pa.array(newer_answers(pairs, keep)) if history else None
    schema, written = (_SCHEMA.append(_NEWER) if history else _SCHEMA), 0
    with pa.ipc.new_stream(target, schema) as sink:
        for table in iter_tables(pairs, ["row_id", *_IDS]):
            rows = pa.table([*table.columns, *found.slice(start, table.num_rows).columns], schema=_SCHEMA)
            if keep is not None:
                rows = rows.filter(pa.array(keep[start : start + table.num_rows]))
            start += table.num_rows
            if newer is not None:
                rows = rows.append_column(_NEWER, newer.slice(written, rows.num_rows))
            written += rows.num_rows
            sink.write_table(rows)


def _chosen(pairs: Path, logp_N: NDArray[np.float64], pairing: str) -> NDArray[np.bool_]:
    """Which pairs stay: of the samples of one row and one iteration the best by `PAIRINGS`, of equal ones the first."""
    columns = ["row_id", "iteration", "sample", "generated_ids"]
    tables = [table.set_column(3, "length", pc.list_value_length(table["generated_ids"])) for table in iter_tables(pairs, columns)]
    found = pa.concat_tables(tables)
    row_N = found["row_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    iteration_N, sample_N, length_N = (found[name].to_numpy() for name in ("iteration", "sample", "length"))
    order = np.lexsort((sample_N, -PAIRINGS[pairing](logp_N, length_N), iteration_N, row_N))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(row_N[order]) != 0) | (np.diff(iteration_N[order]) != 0)
    keep = np.zeros(len(order), dtype=bool)
    keep[order[first]] = True
    return keep


# of log-probs [N] under θ_t, nats, and lengths [N]: what the chosen sample has most of
PAIRINGS: dict[str, Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]] = {
    "most_likely": lambda logp_N, length_N: logp_N,
    "hardest": lambda logp_N, length_N: logp_N / length_N,
    "longest": lambda logp_N, length_N: length_N.astype(np.float64),
}


def sizes_of(rows: Dataset) -> Sizes:
    """What the plan needs of them; of the ids only the lists' offsets are read."""
    row = rows.data.column("row_id").combine_chunks().dictionary_encode().indices
    lengths = (pc.list_value_length(rows.data.column(name)).combine_chunks() for name in _IDS)
    columns = [column.to_numpy().astype(np.int64) for column in (row, *lengths)]
    if "newer" in rows.column_names:
        columns.append(rows.data.column("newer").to_numpy())
    return Sizes(*columns)
