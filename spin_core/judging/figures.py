"""Figures on disk: figures.json says what each is, a table a split has its value on every row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spin_core.judging.evaluators import Figure

_WHAT = "figures.json"
_WEIGHT = ":weight"  # beside a figure's column, where it has one


@dataclass(frozen=True)
class Measured:
    """A figure of a player on one split."""

    unit: str
    better: str | None  # higher, lower; None: neither is
    ids: list[str]  # N rows that have a value
    values_N: NDArray[np.float64]
    weights_N: NDArray[np.float64]


def write_figures(folder: Path, split: str, ids: Sequence[str], found: Mapping[str, Figure]) -> None:
    """Adds a split."""
    columns: dict[str, pa.Array] = {"row_id": pa.array(ids, pa.string())}
    for name, figure in found.items():
        columns[name] = pa.array(figure.values, pa.float64())
        if figure.weights is not None:
            columns[name + _WEIGHT] = pa.array(figure.weights, pa.float64())
    pq.write_table(pa.table(columns), folder / f"{split}.parquet", compression="zstd")
    what = {name: {"unit": figure.unit, "better": figure.better} for name, figure in found.items()}
    (folder / _WHAT).write_text(json.dumps(_read(folder) | what))


def read_figures(folder: Path, split: str) -> dict[str, Measured]:
    """The figures of a split by name."""
    what, table = _read(folder), pq.read_table(folder / f"{split}.parquet")
    found = {}
    for name in (name for name in table.column_names if name in what):
        known = table.filter(table[name].is_valid())
        weights = known[name + _WEIGHT].to_numpy() if name + _WEIGHT in table.column_names else np.ones(known.num_rows)
        unit, better = what[name]["unit"] or "", what[name]["better"]
        found[name] = Measured(unit, better, ids=known["row_id"].to_pylist(), values_N=known[name].to_numpy(), weights_N=weights)
    return found


def _read(folder: Path) -> dict[str, dict[str, str | None]]:
    file = folder / _WHAT
    found: dict[str, dict[str, str | None]] = json.loads(file.read_text()) if file.exists() else {}
    return found
