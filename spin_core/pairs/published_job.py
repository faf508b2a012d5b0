"""The child that tokenises published pairs of the rows that a campaign trains on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spin_core.contracts.rows import TRAIN_FILE
from spin_core.contracts.tables import read_rows
from spin_core.pairs.reading import COLUMNS, TOKENS, PairReader
from spin_core.recipe import DataSettings
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput
from spin_core.sources.locate import Source
from spin_core.sources.readers import Reader

_OTHERS = "of rows that this campaign does not train on"


def _work(job: dict[str, Any]) -> None:
    reader = PairReader(Path(job["model"]), **job["rules"])
    facts = reader.write(_ours(job, reader), Path(job["out"]) / TRAIN_FILE)
    facts["message"] = f"{facts['pairs']:,} pairs of {job['name']}" + (f"; left out: {reader.told}" if reader.left_out else "")
    if not facts["pairs"]:
        raise BadInput(
            f"start_pairs: none of the pairs of {job['name']} can be used ({reader.told or 'it has none'})",
            remedy="set data.name to the rows that they were made of; that may be the pairs' own data set, whose `real` is taken",
        )
    (Path(job["out"]) / "facts.json").write_text(json.dumps(facts))


def _ours(job: dict[str, Any], reader: PairReader) -> Iterator[dict[str, Any]]:
    """The pairs of train rows, as text: what is held out here is never trained on, and a row has one prompt and one human answer in
    all of its pairs, in the tokens that this campaign has for them.
    """
    train = {row["row_id"] for row in read_rows(Path(job["encoded"]) / "train.parquet", ["row_id"])}
    settings = DataSettings(name=job["name"], split=job["split"], config=job["config"])
    source = Source(job["name"], tuple(map(Path, job["files"])), job["commit"], job["config"])
    for number, raw in enumerate(Reader(source, settings, COLUMNS), 1):
        text = {name: value for name, value in raw.items() if name not in TOKENS} if isinstance(raw, dict) else raw
        row = reader.row(text, job["iteration"], f"start_pairs: {job['name']} row {number}")
        if row and row["row_id"] in train:
            yield row
        elif row:
            reader.left_out[_OTHERS] += 1


if __name__ == "__main__":
    process.job_main(_work)
