"""`spinflow reformat`: an SFT data set as the prompts that the official generation reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from spin_core.contracts.rows import PROMPTS, row_id
from spin_core.contracts.tables import TableWriter, iter_tables
from spin_core.official.files import FILES, replaced
from spin_core.recipe import DataSettings
from spin_core.runtime.launcher import Launcher
from spin_core.runtime.progress import tell
from spin_core.sources.stage import Prompts
from spin_core.store import Ref, Store

_COLUMNS = pa.schema([PROMPTS.field(name) for name in ("row_id", "real", "generated")])
# the splits that the official script knows by heart
_SPLITS = {"HuggingFaceH4/ultrachat_200k": ("train_sft", "test_sft")}


def reformat(store: Store, settings: DataSettings, test_split: str | None, out: Path) -> dict[str, int]:
    """Writes train_prefs-… and test_prefs-…; returns their row counts.

    With a `test_split` (known for the official script's data sets) all its rows are the test rows; otherwise
    `settings.test_size` rows of the train split are held out. A context of the test rows is never in train.
    """
    if settings.name in _SPLITS and settings.split is None and test_split is None:
        split, test_split = _SPLITS[settings.name]
        settings = settings.model_copy(update={"split": split})
    on = Launcher(store, "reformat")
    if test_split is None:
        prompts = on.build(Prompts(settings, store.home))
        sides = {"train": [prompts.path / "train.parquet"], "test": [prompts.path / "test.parquet"]}
    else:
        whole = settings.model_copy(update={"test_size": 1})
        tests = whole.model_copy(update={"split": test_split, "subset": None})
        sides = {
            "train": _both(on.build(Prompts(whole, store.home))),
            "test": _both(on.build(Prompts(tests, store.home))),
        }
    held_out: set[str] = set()
    counts = {}
    with replaced(out / FILES["test"]) as test, replaced(out / FILES["train"]) as train:
        for side, path in (("test", test), ("train", train)):
            with TableWriter(path, _COLUMNS) as sink:
                for table in _tables(sides[side]):
                    contexts = [row_id(talk[:-1]) for talk in table["real"].to_pylist()]
                    sink.write(table if side == "test" else table.filter(pa.array([context not in held_out for context in contexts])))
                    held_out.update(contexts if side == "test" else ())
            counts[side] = sink.rows
    tell("data", f"{counts['train']:,} train and {counts['test']:,} test rows in {out}")
    return counts


def _both(prompts: Ref) -> list[Path]:
    return [prompts.path / "test.parquet", prompts.path / "train.parquet"]


def _tables(files: list[Path]) -> Iterator[pa.Table]:
    for file in files:
        for table in iter_tables(file, _COLUMNS.names):
            yield table.select(_COLUMNS.names).cast(_COLUMNS)
