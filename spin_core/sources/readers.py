"""Raw rows of every format, one at a time: memory does not grow with the source."""

from __future__ import annotations

import csv
import gzip
import io
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.recipe import DataSettings
from spin_core.runtime.errors import BadInput
from spin_core.sources.columns import shown, worth_reading
from spin_core.sources.demo import demo_rows
from spin_core.sources.json_stream import json_array, json_lines, json_objects, json_wrapped, layout_of, wrapped_names
from spin_core.sources.locate import Source, pick_split, suffix
from spin_core.sources.talk import BadRow
from spin_core.sources.text import Broken, CutOff, as_utf8, demand_data

_BATCH = 256  # rows of a columnar file that become Python objects at once
_DEMO_ROWS = 400
_ROWS_OF_AN_OBJECT = frozenset(("data", "rows", "examples", "instances", "items", "records", "samples"))
_DELIMITERS = ",;\t"
_Wanted = Callable[[pa.Field], bool]


class Reader:
    """Iterates over a source's raw rows (dicts, or BadRow). Knows how far it is, and afterwards which file was cut off.

    Of a columnar file it reads what `to_talk` has to see, and the columns named in `also`.
    """

    def __init__(self, source: Source, settings: DataSettings, also: frozenset[str] = frozenset()) -> None:
        self._source, self._settings = source, settings
        ignored = frozenset(settings.ignore_columns)
        self._wanted: _Wanted = lambda field: field.name in also or worth_reading(field, ignored)
        self.count = 0
        self.truncated: list[str] = []
        self.total = sum(file.stat().st_size for file in source.files)  # bytes; 0 where that is not known
        self._before = 0
        self._raw: IO[bytes] | None = None

    @property
    def done(self) -> int:
        """Bytes of the source that were read."""
        return self._before + (self._raw.tell() if self._raw and not self._raw.closed else 0)

    def __iter__(self) -> Iterator[Any]:
        for row in self._rows():
            self.count += 1
            yield row

    def _rows(self) -> Iterator[Any]:
        if self._source.commit:
            yield from _hub_rows(self._source, self._settings)
        elif not self._source.files:
            yield from demo_rows(max(_DEMO_ROWS, self._settings.subset or 0))
        for file in self._source.files:
            try:
                yield from self._file_rows(file)
            except CutOff:
                if self._settings.on_truncated == "error":
                    raise BadInput(
                        f"{file} is cut off after {self.count:,} whole rows", remedy="set data.on_truncated=keep to use those"
                    ) from None
                self.truncated.append(file.name)
            except Broken as error:
                raise BadInput(f"{file}, after row {self.count:,}: {error}", remedy="mend the file") from None
            self._before += file.stat().st_size

    def _file_rows(self, file: Path) -> Iterator[Any]:
        ending = suffix(file)
        with ExitStack() as stack:

            def opened() -> IO[bytes]:
                self._raw = stack.enter_context(file.open("rb"))
                plain: Any = stack.enter_context(gzip.open(self._raw)) if ending.endswith(".gz") else self._raw
                return plain if ending in (".parquet", ".arrow") else as_utf8(plain)

            if ending in (".parquet", ".arrow"):
                handle = opened()
                demand_data(handle.peek(64), ending)  # type: ignore[attr-defined]
                yield from (_parquet_rows if ending == ".parquet" else _arrow_rows)(handle, self._wanted)
                return
            rows = _csv_rows(opened()) if ending == ".csv" else self._json_rows(opened, ending)
            yield from _whole_gzip(rows)

    def _json_rows(self, opened: Callable[[], IO[bytes]], ending: str) -> Iterator[Any]:
        """A JSON file is read as what it is, whichever of the JSON endings it has."""
        layout = layout_of(opened)
        if layout == "wrapped":
            names = wrapped_names(opened())
            usual = [name for name in names if name in _ROWS_OF_AN_OBJECT]
            chosen = usual if len(usual) == 1 and self._settings.split not in names else pick_split(names, self._settings.split, "the file")
            yield from map(_served_row, json_wrapped(opened(), chosen))
        elif layout == "objects":
            yield from json_objects(opened())
        elif layout == "array" or not (ending.startswith(".jsonl") or opened().read(1 << 10).lstrip().startswith(b"{")):
            yield from json_array(opened())
        else:
            yield from json_lines(opened())


def _served_row(row: Any) -> Any:
    """The row itself, where a data sets server wrapped it with its number."""
    if isinstance(row, dict) and isinstance(row.get("row"), dict) and "row_idx" in row:
        return BadRow(f"its cells {shown(row['truncated_cells'])} are truncated") if row.get("truncated_cells") else row["row"]
    return row


def _whole_gzip(rows: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from rows
    except EOFError:
        raise CutOff from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Broken(f"not gzip: {error}") from None


def _csv_rows(handle: IO[bytes]) -> Iterator[Any]:
    csv.field_size_limit(sys.maxsize)
    # a byte that is no UTF-8 becomes a lone surrogate, which the row's own check names
    text = io.TextIOWrapper(handle, encoding="utf-8", errors="surrogateescape", newline="")
    head = handle.peek(1 << 12).decode("utf-8", "surrogateescape").lstrip("\r\n").partition("\n")[0]  # type: ignore[attr-defined]
    rows = csv.DictReader(text, strict=True, delimiter=max(_DELIMITERS, key=head.count))  # Excel writes ; or tabs in many countries
    try:
        twice = [name for name, number in Counter(rows.fieldnames or ()).items() if number > 1]
        if twice:
            raise Broken(f"two columns have the name {shown(twice[0])!r}")
        for row in rows:
            extra = row.pop(None, None)
            yield BadRow(f"has {len(extra)} cells more than the header") if extra else {k: v for k, v in row.items() if v is not None}
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise CutOff from None
        raise Broken(f"not CSV at line {rows.line_num}: {error}") from None


def _parquet_rows(handle: IO[bytes], wanted: _Wanted) -> Iterator[Any]:
    try:
        file = pq.ParquetFile(handle, buffer_size=1 << 20, pre_buffer=False)
        columns = _chosen(file.schema_arrow, wanted)
        for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
            yield from _objects(batch)
    except (pa.ArrowException, OSError) as error:
        raise Broken(f"not a whole parquet file ({' '.join(str(error).split())[:120]})") from None


def _arrow_rows(handle: IO[bytes], wanted: _Wanted) -> Iterator[Any]:
    """The IPC file format, and the stream format that `datasets` writes."""
    try:
        try:
            file = pa.ipc.open_file(handle)
            schema, batches = file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        except pa.ArrowInvalid:
            handle.seek(0)
            stream = pa.ipc.open_stream(handle)
            schema, batches = stream.schema, iter(stream)
        columns = _chosen(schema, wanted)
        for batch in batches:
            chosen = batch.select(columns)
            for start in range(0, chosen.num_rows, _BATCH):
                yield from _objects(chosen.slice(start, _BATCH))
    except (pa.ArrowException, OSError) as error:
        raise Broken(f"not a whole Arrow file ({' '.join(str(error).split())[:120]})") from None


def _chosen(schema: pa.Schema, wanted: _Wanted) -> list[str]:
    twice = [name for name, number in Counter(schema.names).items() if number > 1]
    if twice:
        raise Broken(f"two columns have the name {shown(twice[0])!r}")
    return [field.name for field in schema if wanted(field)] or schema.names


def _objects(batch: pa.RecordBatch) -> Iterator[Any]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            yield BadRow("not valid UTF-8 text")
        else:
            for i in range(batch.num_rows):
                yield from _objects(batch.slice(i, 1))


def _hub_rows(source: Source, settings: DataSettings) -> Iterator[Any]:
    """Streams the split's rows at one commit; nothing is downloaded beforehand."""
    import datasets

    try:
        names = datasets.get_dataset_split_names(source.name, source.config, revision=source.commit)
        for split in pick_split(list(names), settings.split, source.name):
            yield from datasets.load_dataset(source.name, source.config, split=split, revision=source.commit, streaming=True)
    except BadInput:
        raise
    except Exception as error:  # what a hub data set's own files and the network raise is not one family
        raise BadInput(
            f"{source.name} cannot be read from the hub: {type(error).__name__}: {' '.join(str(error).split())[:200]}",
            remedy="check the network, data.config and data.split, or download the data set and give its folder",
        ) from None
