"""Rows in an order that only their content decides, with one bucket of them in memory at a time.

A row's place is drawn by hashing its context with the recipe's seed. Rows with one context, duplicates among them, get
the same draw and so the same bucket: sorting, finding duplicates and splitting all work bucket by bucket.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spin_core.contracts.rows import MESSAGES, Message, row_id

_BUCKETS = 128
_PENDING_CHARS = 32 << 20  # characters of rows that wait to be written
_ROW_CHARS = 200  # what a row costs beside its text
ORDERED = pa.schema(
    [("draw", pa.uint64()), ("row_id", pa.string()), ("row_number", pa.int64()), ("real", MESSAGES), ("check", pa.string())]
)


def draw(context: Sequence[Message], seed: int) -> int:
    """The place of a context: 64 bits that its content and the seed decide."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{row_id(context)}".encode()).digest()[:8], "big")


class Sorter:
    """Takes rows in any order and gives them back sorted by (draw, row_id, row_number)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: list[list[dict[str, Any]]] = [[] for _ in range(_BUCKETS)]
        self._chars = 0
        self._files = ExitStack()
        self._writers: dict[int, Any] = {}

    def add(self, number: int, messages: list[Message], place: int, check: str | None) -> None:
        """One row; `number` is its row in the source, `place` its draw."""
        entry = {"draw": place, "row_id": row_id(messages), "row_number": number, "real": messages, "check": check}
        self._pending[place * _BUCKETS >> 64].append(entry)
        self._chars += _ROW_CHARS + sum(len(m["content"]) for m in messages)
        if self._chars > _PENDING_CHARS:
            self._flush()

    def _flush(self) -> None:
        for bucket, rows in enumerate(self._pending):
            if rows:
                if bucket not in self._writers:
                    sink = self._files.enter_context(pa.OSFile(str(self._folder / f"{bucket}.arrow"), "wb"))
                    self._writers[bucket] = self._files.enter_context(pa.ipc.new_stream(sink, ORDERED))
                self._writers[bucket].write_batch(pa.RecordBatch.from_pylist(rows, schema=ORDERED))
                rows.clear()
        self._chars = 0

    def __iter__(self) -> Iterator[pa.Table]:
        """The rows bucket by bucket; nothing can be added any more."""
        self._files.close()
        for bucket in range(_BUCKETS):
            batches = [pa.RecordBatch.from_pylist(self._pending[bucket], schema=ORDERED)]
            if bucket in self._writers:
                file = self._folder / f"{bucket}.arrow"
                with pa.OSFile(str(file), "rb") as source:
                    batches += pa.ipc.open_stream(source)
                file.unlink()
            self._pending[bucket] = []
            table = pa.Table.from_batches(batches)
            if table.num_rows:
                yield table.take(pc.sort_indices(table, [("draw", "ascending"), ("row_id", "ascending"), ("row_number", "ascending")]))


def without_duplicates(table: pa.Table) -> tuple[pa.Table, list[tuple[int, int]]]:
    """A sorted table's first row of each id, and (row number, number of the row that it repeats) of the others."""
    ids = table["row_id"].combine_chunks()
    again = np.concatenate([[False], pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)])
    if not again.any():
        return table, []
    numbers = table["row_number"].to_numpy()
    first = numbers[~again][np.cumsum(~again) - 1]
    return table.filter(pa.array(~again)), list(zip(numbers[again].tolist(), first[again].tolist(), strict=True))


class Split:
    """Cuts sorted tables into held-out, validation and train rows.

    The first `test_size` rows are held out, the next `validation_size` are for validation, and with them all rows of their contexts:
    what is held out does not depend on the size of what is for validation.
    """

    def __init__(self, test_size: int, validation_size: int, subset: int | None) -> None:
        self._test_size, self._validation_size, self._subset = test_size, validation_size, subset
        self.test, self.validation, self.train = 0, 0, 0

    def cut(self, table: pa.Table) -> tuple[pa.Table, pa.Table, pa.Table]:
        """(held-out, validation, train) rows of the next table. A draw is never in two tables."""
        if self._subset is not None:
            table = table[: max(0, self._subset - self.test - self.validation - self.train)]
        test, rest = _first(table, self._test_size - self.test)
        validation, train = _first(rest, self._validation_size - self.validation)
        self.test += test.num_rows
        self.validation += validation.num_rows
        self.train += train.num_rows
        return test, validation, train


def _first(table: pa.Table, count: int) -> tuple[pa.Table, pa.Table]:
    """The first `count` rows and all rows of their draws; and the others."""
    place = min(table.num_rows, max(0, count))
    if place:
        draws = table["draw"].to_numpy()
        place = int(np.searchsorted(draws, draws[place - 1], side="right"))
    return table[:place], table[place:]
