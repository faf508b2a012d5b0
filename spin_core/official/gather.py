"""`spinflow gather`: the fractions' answers as the two parquet files that the official trainer reads."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from spin_core.contracts.rows import row_id
from spin_core.contracts.tables import TableWriter
from spin_core.official.files import COLUMNS, FILES, loser_file, replaced
from spin_core.pairs.reading import TOKENS, generated_side, real_side
from spin_core.runtime.errors import BadInput
from spin_core.runtime.progress import tell
from spin_core.sources.json_stream import json_lines
from spin_core.sources.talk import BadRow
from spin_core.sources.text import CutOff

_BLOCK = 2048  # rows that wait as Python objects


def gather(folder: Path, fractions: int, out: Path) -> dict[str, int]:
    """Reads loser_0 … loser_<fractions−1> and every loser_<frac>_test; returns what was kept and what was left out.

    Every row is kept once: a fraction that was appended to twice, as the official script does, counts once. Train rows with
    a held-out context, and those whose two answers are the same, are left out.
    """
    files = {
        "train": [loser_file(folder, number, "train") for number in range(fractions)],
        "test": sorted(folder.glob("loser_*_test.jsonl")),
    }
    _demand(folder, files)
    collector = _Collector()
    counts: dict[str, int] = {}
    with replaced(out / FILES["test"]) as test, replaced(out / FILES["train"]) as train:
        for side, path in (("test", test), ("train", train)):  # test first: its contexts must be known
            counts[side] = _write(path, collector.rows(files[side], side))
            if not counts[side]:
                raise BadInput(f"{folder}: no {side} pair is left", remedy="look at the files")
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in collector.left_out.items())
    kept = f"{counts['train']:,} train and {counts['test']:,} test pairs in {out}"
    tell("gather", kept + (f"; left out: {left_out}" if left_out else ""))
    return {**counts, **collector.left_out}


def _write(path: Path, rows: Iterator[dict[str, Any]]) -> int:
    with TableWriter(path, COLUMNS) as sink:
        while block := list(itertools.islice(rows, _BLOCK)):
            sink.write(pa.Table.from_pylist(block, schema=COLUMNS))
    return sink.rows


def _demand(folder: Path, files: dict[str, list[Path]]) -> None:
    missing = [file.name for file in files["train"] if not file.is_file()]
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise BadInput(
            f"{folder / missing[0]}{more} of {len(files['train']):,} fractions are missing",
            remedy="run spinflow generate with that --data-frac, or mend --num-fracs",
        )
    if not files["test"]:
        raise BadInput(f"{folder} has no loser_0_test.jsonl", remedy="run spinflow generate --split test")


class _Collector:
    """Rows that are whole, there once and of use; counts the others."""

    def __init__(self) -> None:
        self.left_out: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._held_out: set[str] = set()

    def rows(self, files: list[Path], side: str) -> Iterator[dict[str, Any]]:
        """The pairs of the files as rows of COLUMNS."""
        for file in files:
            for number, raw in enumerate(_whole(file), 1):
                try:
                    row = _pair(raw)
                except BadRow as error:
                    raise BadInput(f"{file} row {number}: {error}", remedy="generate this fraction again") from None
                reason = self._reason(row, side)
                if reason:
                    self.left_out[reason] += 1
                else:
                    yield row

    def _reason(self, row: dict[str, Any], side: str) -> str | None:
        again = row["row_id"] in self._seen
        self._seen.add(row["row_id"])
        context = row_id(row["real"][:-1])
        if again:
            return "copies of a row"
        if side == "test":
            self._held_out.add(context)
        elif context in self._held_out:
            return "with a held-out prompt"
        elif _same(row):
            return "with the same answer on both sides"
        return None


def _same(row: dict[str, Any]) -> bool:
    if row["generated_ids"] is not None:
        return bool(row["generated_ids"] == row["real_ids"])
    return bool(row["generated"][-1]["content"] == row["real"][-1]["content"].strip())


def _whole(file: Path) -> Iterator[Any]:
    try:
        with file.open("rb") as handle:
            yield from json_lines(handle)
    except CutOff:
        raise BadInput(f"{file} is cut off in its last line", remedy="generate this fraction again") from None


def _pair(raw: Any) -> dict[str, Any]:
    real, generated = real_side(raw), generated_side(raw)
    if generated[:-1] != real[:-1]:
        raise BadRow("its two sides have different prompts")
    # engines leave white space around the answer, as the official gather knows
    answer = {"role": "assistant", "content": generated[-1]["content"].strip()}
    return {"row_id": row_id(real), "real": real, "generated": [*real[:-1], answer], **{name: raw.get(name) for name in TOKENS}}
