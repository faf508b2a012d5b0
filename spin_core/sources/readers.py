"""Raw rows of every format, one at a time: memory does not grow with the source."""

from __future__ import annotations

import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from spin_core.recipe import DataSettings
from spin_core.runtime.errors import BadInput
from spin_core.sources.demo import demo_rows
from spin_core.sources.json_stream import Broken, CutOff, json_array, json_lines
from spin_core.sources.locate import Source, pick_split, suffix
from spin_core.sources.shapes import KNOWN_COLUMNS, BadRow

_BATCH = 256  # rows of a columnar file that become Python objects at once
_DEMO_ROWS = 400


class Reader:
    """Iterates over a source's raw rows (dicts, or BadRow). Knows how far it is, and afterwards which file was cut off."""

    def __init__(self, source: Source, settings: DataSettings, columns: frozenset[str] = KNOWN_COLUMNS) -> None:
        self._source, self._settings, self._columns = source, settings, columns
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
            self._raw = stack.enter_context(file.open("rb"))
            if ending == ".parquet":
                yield from _parquet_rows(self._raw, self._columns)
            elif ending == ".arrow":
                yield from _arrow_rows(self._raw, self._columns)
            else:
                plain = stack.enter_context(gzip.open(self._raw)) if ending.endswith(".gz") else self._raw
                yield from _whole_gzip(_text_rows(plain, ending))


def _text_rows(handle: Any, ending: str) -> Iterator[Any]:
    # a broken byte becomes a lone surrogate, which the row's own check names
    text = io.TextIOWrapper(handle, encoding="utf-8-sig", errors="surrogateescape", newline="")
    if ending == ".csv":
        yield from _csv_rows(text)
    elif ending.startswith(".jsonl") or _first_character(text) == "{":  # JSON lines are often named .json
        handle.seek(0)
        yield from json_lines(handle)
    else:
        text.seek(0)
        yield from json_array(text)
    text.detach()


def _first_character(text: IO[str]) -> str:
    while (character := text.read(1)).isspace():
        pass
    text.seek(0)
    return character


def _whole_gzip(rows: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from rows
    except EOFError:
        raise CutOff from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Broken(f"not gzip: {error}") from None


def _csv_rows(text: IO[str]) -> Iterator[Any]:
    csv.field_size_limit(sys.maxsize)
    rows = csv.DictReader(text, strict=True)
    try:
        for row in rows:
            extra = row.pop(None, None)
            yield BadRow(f"has {len(extra)} cells more than the header") if extra else {k: v for k, v in row.items() if v is not None}
    except csv.Error as error:
        if "unexpected end of data" in str(error):
            raise CutOff from None
        raise Broken(f"not CSV at line {rows.line_num}: {error}") from None


def _parquet_rows(handle: IO[bytes], wanted: frozenset[str]) -> Iterator[Any]:
    try:
        file = pq.ParquetFile(handle, buffer_size=1 << 20, pre_buffer=False)
        columns = [name for name in file.schema_arrow.names if name in wanted] or None
        for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
            yield from _objects(batch)
    except (pa.ArrowException, OSError) as error:
        raise Broken(f"not a whole parquet file ({' '.join(str(error).split())[:120]})") from None


def _arrow_rows(handle: IO[bytes], wanted: frozenset[str]) -> Iterator[Any]:
    """The IPC file format, and the stream format that `datasets` writes."""
    try:
        try:
            file = pa.ipc.open_file(handle)
            batches: Any = (file.get_batch(i) for i in range(file.num_record_batches))
        except pa.ArrowInvalid:
            handle.seek(0)
            batches = pa.ipc.open_stream(handle)
        for batch in batches:
            known = [name for name in batch.schema.names if name in wanted]
            chosen = batch.select(known) if known else batch
            for start in range(0, chosen.num_rows, _BATCH):
                yield from _objects(chosen.slice(start, _BATCH))
    except (pa.ArrowException, OSError) as error:
        raise Broken(f"not a whole Arrow file ({' '.join(str(error).split())[:120]})") from None


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
