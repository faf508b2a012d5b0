"""The official scripts' files: pairs as parquet folders and hub data sets, answers as `loser_<frac>.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from spin_core.contracts.rows import PAIRS, TEST_FILE, TRAIN_FILE
from spin_core.recipe import DataSettings
from spin_core.runtime.errors import BadInput
from spin_core.sources.locate import Source, locate
from spin_core.sources.readers import Reader
from spin_core.store import Store
from spin_core.store.files import whole

FILES = {"train": TRAIN_FILE, "test": TEST_FILE}
COLUMNS = pa.schema(
    [field for field in PAIRS if field.name not in {"iteration", "sample", "check"}]
)  # ids are null where a file has text only


def open_pairs(store: Store, name: str, split: str) -> tuple[Source, Reader]:
    """The raw rows of one split of a folder, a file or a hub data set."""
    settings = DataSettings(name=name, split=split)
    source = locate(settings, store.home)
    return source, Reader(source, settings)


def loser_file(folder: Path, fraction: int, split: str) -> Path:
    """Where the official scripts write a fraction's answers."""
    return folder / (f"loser_{fraction}_test.jsonl" if split.startswith("test") else f"loser_{fraction}.jsonl")


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the block ends well: a file is whole or as it was before."""
    try:
        with whole(path) as temporary:
            yield temporary
    except OSError as error:
        if error.errno == 28:
            raise BadInput(f"disk full while writing {path}", remedy="free some space and run again") from error
        raise


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a JSON-lines file; the official script appends, so that a second run doubles every row."""
    with replaced(path) as temporary, temporary.open("w", encoding="utf-8") as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
