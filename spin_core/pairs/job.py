"""The child that joins shards and human answers.

Prompts, encoded rows and shards are in one order, so pairs are made by walking all three side by side, in Arrow tables: no
index over the rows, and memory for a few thousand of them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from spin_core.contracts.rows import ANSWERED, HELD_OUT, PAIRS, PAIRS_OF, TRAIN_FILE
from spin_core.contracts.tables import TableWriter, count_rows, iter_tables, last_content, read_rows, same_lists, with_last_content
from spin_core.encoding.ends import Ends, ended_N, read_ends, without_end
from spin_core.pairs.shortcuts import Shortcuts, speller
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput, Corrupt
from spin_core.runtime.progress import Teller

_BLOCK = 4096  # rows that are joined at once
_WHOLE = pa.array(ANSWERED)


def _work(job: dict[str, Any]) -> None:
    out, iteration = Path(job["out"]), job["iteration"]
    shortcuts = Shortcuts(read_ends(Path(job["encoded"])))
    with TableWriter(out / TRAIN_FILE, PAIRS) as train:
        keep = job["keep_identical"]
        fresh = _Join(job, "train", keep_identical=keep, shortcuts=shortcuts).write(train)
        if train.rows == (fresh["identical"] if keep else 0):
            raise BadInput(
                f"iteration {iteration}: no pair is left to tell apart ({_counts(fresh, keep)})",
                remedy="there is nothing left to learn from this data",
            )
        carried = _carry(job, train)
    held_out = {}
    for split in filter(job.get, HELD_OUT):
        with TableWriter(out / PAIRS_OF[split], PAIRS) as sink:
            refused = _Join(job, split, keep_identical=True).write(sink)["refused"]
        held_out[split] = {"rows": sink.rows, "refused": refused}
    facts = {
        "pairs": train.rows,
        "carried": carried,
        "identical": fresh["identical"],
        "keep_identical": keep,
        "refused": fresh["refused"],
        "held_out": held_out["test"]["rows"],
        "held_out_refused": held_out["test"]["refused"],
        "shortcuts": shortcuts.aucs(),
        "warnings": shortcuts.warnings(speller(job["model"])),
    }
    message = f"{train.rows:,} pairs ({carried:,} carried over), {held_out['test']['rows']:,} held out; {_counts(fresh, keep)}"
    (out / "facts.json").write_text(json.dumps(facts | {"message": message}))


def _counts(counts: Mapping[str, int], keep_identical: bool) -> str:
    identical, refused = f"{counts['identical']:,} with the same answer on both sides", f"{counts['refused']:,} that the engine refused"
    left_out = ([] if keep_identical else [identical]) + ([refused] if counts["refused"] else [])
    told = [f"kept: {identical}"] if keep_identical else []
    return "; ".join([*told, f"left out: {', '.join(left_out)}"] if left_out else told)


def _carry(job: dict[str, Any], sink: TableWriter) -> int:
    """Writes the own pairs of earlier iterations, the last one first; returns how many there are."""
    before, ends = sink.rows, read_ends(Path(job["encoded"]))
    for back, folder in enumerate(job["carried"], 1):
        for table in iter_tables(Path(folder) / TRAIN_FILE, rows=_BLOCK):
            table = table.filter(pc.equal(table["iteration"], job["iteration"] - back))
            if not job["keep_identical"]:  # the earlier iteration may have kept them
                texts = last_content(table["generated"].combine_chunks())
                table = table.filter(pc.invert(_identical(table["real"], table["real_ids"], table["generated_ids"], texts, ends)))
            sink.write(table)
    return sink.rows - before


class _Join:
    """Every encoded row of a split with its prompt and its answer."""

    def __init__(self, job: dict[str, Any], split: str, *, keep_identical: bool, shortcuts: Shortcuts | None = None) -> None:
        self._iteration, self._split, self._keep_identical = job["iteration"], split, keep_identical
        self._shortcuts, self._ends = shortcuts, read_ends(Path(job["encoded"]))
        self._encoded_file = Path(job["encoded"]) / f"{split}.parquet"
        self._encoded = _Cursor(self._encoded_file, ["row_id", "prompt_ids", "real_ids"])
        self._prompts = _Cursor(Path(job["prompts"]) / f"{split}.parquet", ["row_id", "real", "check"])
        self._shards = [Path(shard) / "shard.parquet" for shard in job[split]]
        self._total = count_rows(self._encoded_file)
        self._samples: int | None = None  # of each row
        self._done, self._teller = 0, Teller("", self._total, f"{split} rows")
        self.counts: Counter[str] = Counter(identical=0, refused=0)

    def write(self, sink: TableWriter) -> Counter[str]:
        """Writes the pairs; returns how many rows were left out and why."""
        prove_unique(self._encoded_file, self._split)
        for answers in self._blocks():
            row_N = self._rows(answers)
            wanted = self._encoded.take(int(row_N[-1]) + 1)
            if wanted.num_rows <= row_N[-1]:
                self._prove()
            prompts = self._prompts.take_ids(wanted["row_id"]).take(row_N)
            wanted = wanted.take(row_N)
            if not _equal(wanted, answers, "row_id"):
                self._prove()
            if not _equal(wanted, answers, "prompt_ids"):
                raise Corrupt(f"gather: {self._split} rows were sampled from other prompt tokens", remedy="run generate again")
            pairs = self._pairs(prompts, wanted, answers)
            if self._shortcuts and pairs.num_rows:
                self._shortcuts.add(*(pairs[name].combine_chunks() for name in ("real_ids", "generated_ids")))
            sink.write(pairs)
            self._done += int(row_N[-1]) + 1
            self._teller.add(int(row_N[-1]) + 1)
        if self._done != self._total:
            self._prove()
        return self.counts

    def _blocks(self) -> Iterator[pa.Table]:
        """The shards' rows, small shards put together."""
        waiting: list[pa.Table] = []
        for shard in self._shards:
            with pq.ParquetFile(shard) as file:
                waiting.append(file.read())
            if sum(table.num_rows for table in waiting) >= _BLOCK:
                yield pa.concat_tables(waiting)
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting)

    def _rows(self, answers: pa.Table) -> NDArray[np.int64]:
        """Which of the block's rows, from 0, each answer is of. Raises Corrupt unless every row has samples 0 … S−1, in order."""
        sample_N = answers["sample"].to_numpy()
        if self._samples is None:
            self._samples = int(sample_N.max()) + 1
        number_N = np.arange(len(sample_N))
        if not np.array_equal(sample_N, number_N % self._samples) or len(sample_N) % self._samples:
            self._prove()
        return number_N // self._samples

    def _pairs(self, prompts: pa.Table, wanted: pa.Table, answers: pa.Table) -> pa.Table:
        usable = pc.and_(pc.is_in(answers["finish_reason"], _WHOLE), pc.greater(pc.list_value_length(answers["generated_ids"]), 0))
        usable = pc.fill_null(usable, False).combine_chunks()
        self.counts["refused"] += len(usable) - pc.sum(usable).as_py()
        identical = _identical(prompts["real"], wanted["real_ids"], answers["generated_ids"], answers["generated"], self._ends)
        kept = pc.and_not(usable, identical)
        self.counts["identical"] += pc.sum(usable).as_py() - pc.sum(kept).as_py()
        if not self._keep_identical:
            usable = kept
        prompts, wanted, answers = (table.filter(usable) for table in (prompts, wanted, answers))
        real = prompts["real"].combine_chunks()
        texts = pc.fill_null(answers["generated"].combine_chunks(), "")
        columns = {name: table[name] for table in (answers, wanted, prompts) for name in table.column_names}
        columns["generated"] = with_last_content(real, texts)
        columns["iteration"] = pa.array(np.full(len(real), self._iteration, dtype=np.int32))
        return pa.table({name: columns[name] for name in PAIRS.names}, schema=PAIRS)

    def _prove(self) -> None:
        """Finds the row that breaks the order or the count, and raises Corrupt."""
        found = [row["row_id"] for shard in self._shards for row in read_rows(shard, ["row_id", "sample"]) if not row["sample"]]
        prove_complete(found, [row["row_id"] for row in read_rows(self._encoded_file, ["row_id"])], self._split)
        raise Corrupt(
            f"gather: the {self._split} shards are not in the order of the prompts and their samples", remedy="run generate again"
        )


def _identical(talks: pa.Array, real_ids: pa.Array, generated_ids: pa.Array, texts: pa.Array, ends: Ends) -> pa.BooleanArray:
    """Which pairs have one answer on both sides: the same ids but for what ends the turn, or whole answers with the same text.

    Such a pair could teach only which end of turn, white space or spelling in tokens the opponent happened to choose.
    """
    talks, real_ids, generated_ids, texts = map(_flat, (talks, real_ids, generated_ids, texts))
    same_ids = same_lists(without_end(real_ids, ends), without_end(generated_ids, ends))
    whole = pc.and_(pa.array(ended_N(real_ids, ends)), pa.array(ended_N(generated_ids, ends)))
    same_text = pc.equal(pc.utf8_trim_whitespace(last_content(talks)), pc.utf8_trim_whitespace(pc.fill_null(texts, "")))
    return pc.or_(same_ids, pc.and_(whole, same_text))


def _flat(column: pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _equal(left: pa.Table, right: pa.Table, column: str) -> bool:
    return bool(left[column].combine_chunks().equals(right[column].combine_chunks()))


class _Cursor:
    """A parquet file that is read once from its beginning, by row count or by row id."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self._path = path
        self._tables = iter_tables(path, columns, _BLOCK)
        schema = pq.read_schema(path)
        self._rest = pa.schema([schema.field(name) for name in columns]).empty_table()

    def take(self, count: int) -> pa.Table:
        """The next `count` rows, or those that are left."""
        pieces = [self._rest]
        while sum(piece.num_rows for piece in pieces) < count and (piece := next(self._tables, None)) is not None:
            pieces.append(piece)
        table = pa.concat_tables(pieces)
        self._rest = table[count:]
        return table[:count]

    def take_ids(self, ids: pa.ChunkedArray) -> pa.Table:
        """The rows with these ids, which come in the file's order; rows between them are passed over."""
        ids = ids.combine_chunks()
        found = []
        missing = ids
        while len(missing):
            rows = self.take(len(missing))
            if not rows.num_rows:
                raise Corrupt(f"gather: row {missing[0]} is not in {self._path}", remedy="remove the encoded artifact and run again")
            chosen = rows.filter(pc.is_in(rows["row_id"], missing))
            found.append(chosen)
            missing = missing[chosen.num_rows :]
        table = pa.concat_tables(found)
        if not table["row_id"].combine_chunks().equals(ids):
            raise Corrupt(
                f"gather: {self._path} and the encoded rows are not in one order", remedy="remove the encoded artifact and run again"
            )
        return table


def prove_unique(encoded: Path, split: str) -> None:
    """Raises Corrupt if an id is there twice: what is compared row by row with it would then be, too."""
    ids = pq.read_table(encoded, columns=["row_id"])["row_id"]
    if pc.count_distinct(ids).as_py() != len(ids):
        prove_complete(ids.to_pylist(), ids.unique().to_pylist(), split)


def prove_complete(found: list[str], wanted: list[str], split: str) -> None:
    """Raises Corrupt, naming the first row, unless `found` holds every id of `wanted` exactly once."""
    counts, expected = Counter(found), set(wanted)
    problems = {
        "are missing": [row_id for row_id in wanted if row_id not in counts],
        "are not in the prompts": [row_id for row_id in counts if row_id not in expected],
        "are there twice": [row_id for row_id, count in counts.items() if count > 1],
    }
    for problem, ids in problems.items():
        if ids:
            raise Corrupt(f"gather: {len(ids):,} of {len(wanted):,} {split} rows {problem}, first {ids[0]}", remedy="run generate again")


if __name__ == "__main__":
    process.job_main(_work)
