"""Tables on disk and in memory: parquet written and read in pieces, and Arrow columns compared and changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spin_core.contracts.rows import ANSWERED, MESSAGES, SPLITS

_GROUP_ROWS = 8192  # rows of a row group: what a reader has in memory at once


def with_last_content(talks: pa.ListArray, texts: pa.Array) -> pa.ListArray:
    """The conversations [N] with the content of each one's last turn replaced by texts [N]; none may be empty."""
    offsets = talks.offsets.to_numpy()
    role, content = talks.flatten().flatten()
    last = np.zeros(len(content), dtype=bool)
    last[offsets[1:] - offsets[0] - 1] = True
    turns = pa.StructArray.from_arrays([role, pc.replace_with_mask(content, pa.array(last), texts)], fields=list(talks.type.value_type))
    return pa.ListArray.from_arrays(pa.array(offsets - offsets[0]), turns, type=MESSAGES)


def last_content(talks: pa.ListArray) -> pa.Array:
    """The content [N] of each conversation's last turn; none may be empty."""
    offsets = talks.offsets.to_numpy()
    return talks.flatten().field("content").take(pa.array(offsets[1:] - offsets[0] - 1))


def same_lists(left: pa.ListArray, right: pa.ListArray) -> pa.BooleanArray:
    """Which lists of ids [N] hold the same numbers: compared as byte strings, because Arrow has no kernel for lists."""
    return pc.equal(_as_bytes(left), _as_bytes(right))


def fingerprints(ids: pa.ListArray) -> NDArray[np.int64]:
    """A number for each list of ids [N], the same for equal lists; good within this process only."""
    return np.array([hash(content) for content in _as_bytes(ids).to_pylist()], dtype=np.int64)


def _as_bytes(ids: pa.ListArray) -> pa.Array:
    values = ids.flatten()
    width = values.type.bit_width // 8
    offsets = (ids.offsets.to_numpy().astype(np.int64) - ids.offsets[0].as_py()) * width
    data = pa.py_buffer(values.to_numpy().tobytes()) if values.offset else values.buffers()[1]
    return pa.Array.from_buffers(pa.large_binary(), len(ids), [None, pa.py_buffer(offsets), data])


class TableWriter:
    """Writes tables of one schema as parquet, in row groups of at least `_GROUP_ROWS` rows but for the last."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema = schema
        # ids and texts hardly repeat, so a dictionary only costs time
        names = [name for name in ("source", "finish_reason", "iteration", "sample") if name in schema.names]
        self._file = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=[*names, *_roles(schema)])
        self._waiting: list[pa.Table] = []
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Adds rows; raises ArrowInvalid if the schema is another."""
        self._waiting.append(table)
        self.rows += table.num_rows
        if sum(waiting.num_rows for waiting in self._waiting) >= _GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            self._file.write_table(pa.concat_tables(self._waiting), row_group_size=2 * _GROUP_ROWS)
        self._waiting = []

    def close(self) -> None:
        """Writes what waits and the file's end."""
        self._flush()
        self._file.close()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:
            self._file.close()


def _roles(schema: pa.Schema) -> list[str]:
    return [f"{field.name}.list.element.role" for field in schema if field.type == MESSAGES]


def iter_tables(path: Path, columns: list[str] | None = None, rows: int = _GROUP_ROWS) -> Iterator[pa.Table]:
    """A parquet file in pieces of at most `rows` rows."""
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
        for batch in file.iter_batches(batch_size=rows, columns=columns):
            yield pa.Table.from_batches([batch])


class RowReader:
    """Rows of a parquet file by number. The row group that was read last is kept, so reading on costs nothing."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self._file, self._columns = pq.ParquetFile(path), columns
        sizes = [self._file.metadata.row_group(group).num_rows for group in range(self._file.num_row_groups)]
        self._starts = [0, *itertools.accumulate(sizes)]
        self._last: tuple[int, pa.Table] | None = None

    def read(self, start: int, stop: int) -> pa.Table:
        """Rows `start:stop`, from no row group that holds none of them."""
        pieces = [self._file.schema_arrow.empty_table().select(self._columns)]
        for group, (first, end) in enumerate(itertools.pairwise(self._starts)):
            if first < stop and start < end:
                pieces.append(self._group(group)[max(0, start - first) : stop - first])
        return pa.concat_tables(pieces)

    def _group(self, number: int) -> pa.Table:
        if self._last is None or self._last[0] != number:
            self._last = None  # one in memory at a time
            self._last = number, self._file.read_row_group(number, self._columns)
        return self._last[1]


def split_files(folder: Path) -> dict[str, Path]:
    """The files of the splits that a `prompts` or `encoded` artifact has."""
    files = {split: folder / f"{split}.parquet" for split in SPLITS}
    return {split: file for split, file in files.items() if file.exists()}


def id_lists(column: pa.ChunkedArray) -> list[list[int]]:
    """Lists of ids [N] as Python lists, many times faster than `to_pylist`."""
    found = []
    for chunk in column.chunks:
        values, offsets = chunk.values.to_numpy(), chunk.offsets.to_numpy()
        found += [values[start:stop].tolist() for start, stop in itertools.pairwise(offsets)]
    return found


def count_rows(path: Path) -> int:
    """The rows of a parquet file, from its footer."""
    return int(pq.read_metadata(path).num_rows)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> int:
    """Writes `rows` as parquet with exactly `schema`; returns the row count."""
    table = pa.Table.from_pylist(list(rows), schema=schema)
    pq.write_table(table, path, compression="zstd")
    return int(table.num_rows)


def read_rows(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """Reads a parquet file as a list of dicts."""
    rows: list[dict[str, Any]] = pq.read_table(path, columns=columns).to_pylist()
    return rows


def read_answers(shards: Iterable[Path], columns: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The answers of shards with `row_id` and these columns, those that the engine refused left out."""
    wanted = list(dict.fromkeys(["row_id", "finish_reason", *columns]))
    return (row for shard in shards for row in read_rows(shard / "shard.parquet", wanted) if row["finish_reason"] in ANSWERED)


def texts_by_row(shards: Iterable[Path]) -> dict[str, str]:
    """The answer to each row, where each was answered once."""
    return {row["row_id"]: row["generated"] for row in read_answers(shards, ["generated"])}
