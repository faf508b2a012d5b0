"""The child that tokenises pairs of the official layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from spin_core.contracts.rows import TRAIN_FILE
from spin_core.pairs.reading import COLUMNS, PairReader
from spin_core.recipe import DataSettings
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput
from spin_core.sources.locate import Source
from spin_core.sources.readers import Reader


def _work(job: dict[str, Any]) -> None:
    reader = PairReader(Path(job["model"]), **job["rules"])
    facts = reader.write(islice(_mixed(job, reader), job["max_rows"]), Path(job["out"]) / TRAIN_FILE)
    if not facts["pairs"]:
        raise BadInput(f"dataset_mixer: no pair is left to train on ({reader.told})", remedy="raise max_prompt_length, or look at the data")
    (Path(job["out"]) / "facts.json").write_text(json.dumps(facts))


def _mixed(job: dict[str, Any], reader: PairReader) -> Iterator[dict[str, Any]]:
    """The first share of every data set's rows, as the official mixer takes them; `iteration` is the data set's place."""
    for place, entry in enumerate(job["sources"]):
        settings = DataSettings(name=entry["name"], split=job["split"])
        source = Source(entry["name"], tuple(map(Path, entry["files"])), entry["commit"])
        count = int(entry["share"] * sum(1 for _ in Reader(source, settings, COLUMNS))) if entry["share"] < 1 else None
        for number, raw in enumerate(islice(Reader(source, settings, COLUMNS), count), 1):
            row = reader.row(raw, place, f"{entry['name']} row {number}")
            if row:
                yield row


if __name__ == "__main__":
    process.job_main(_work)
