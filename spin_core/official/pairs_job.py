"""The child that tokenises pairs of the official layout."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from spin_core.contracts.rows import PAIRS, TRAIN_FILE, row_id
from spin_core.contracts.tables import TableWriter
from spin_core.encoding.chat import Renderer
from spin_core.official.files import TOKENS, generated_side, real_side
from spin_core.recipe import DataSettings
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput
from spin_core.sources.locate import Source
from spin_core.sources.readers import Reader
from spin_core.sources.talk import BadRow

_COLUMNS = frozenset(("generated", "rejected", *TOKENS))
_BLOCK = 256  # rows that are rendered at once


def _work(job: dict[str, Any]) -> None:
    maker = _Maker(job)
    rows = itertools.islice(maker.rows(job["sources"]), job["max_rows"])
    with TableWriter(Path(job["out"]) / TRAIN_FILE, PAIRS) as sink:
        while block := list(itertools.islice(rows, _BLOCK)):
            sink.write(pa.Table.from_pylist(maker.pairs(block), schema=PAIRS))
    if not sink.rows:
        raise BadInput("dataset_mixer: no pair is left to train on", remedy="raise max_prompt_length, or look at the data")
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in maker.left_out.items())
    message = f"{sink.rows:,} pairs, {maker.own_tokens:,} of them with the tokens that were sampled"
    message += f"; left out: {left_out}" if left_out else ""
    (Path(job["out"]) / "facts.json").write_text(json.dumps({"pairs": sink.rows, **maker.left_out, "message": message}))


class _Maker:
    """Rows of any official file to rows of PAIRS; counts what it leaves out."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._renderer = Renderer(Path(job["model"]))
        self._prompt_limit, self._answer_limit = job["max_prompt_tokens"], job["max_new_tokens"]
        self._split = job["split"]
        self._seen: set[tuple[str, int]] = set()
        self.left_out: Counter[str] = Counter()
        self.own_tokens = 0

    def rows(self, sources: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The first share of every data set's rows, as the official mixer takes them; `iteration` is the data set's place."""
        for place, entry in enumerate(sources):
            settings = DataSettings(name=entry["name"], split=self._split)
            source = Source(entry["name"], tuple(map(Path, entry["files"])), entry["commit"])
            count = int(entry["share"] * sum(1 for _ in Reader(source, settings, _COLUMNS))) if entry["share"] < 1 else None
            for number, raw in enumerate(itertools.islice(Reader(source, settings, _COLUMNS), count), 1):
                try:
                    real, generated = real_side(raw), generated_side(raw)
                except BadRow as error:
                    raise BadInput(f"{entry['name']} row {number}: {error}", remedy="gather it again with spinflow gather") from None
                key = (row_id(real), place)
                if real[:-1] != generated[:-1]:
                    raise BadInput(f"{entry['name']} row {number}: its two sides have different prompts", remedy="mend the data")
                if key in self._seen:
                    self.left_out["copies of a row"] += 1
                    continue
                self._seen.add(key)
                yield {"row_id": key[0], "iteration": place, "real": real, "generated": generated, "raw": raw}

    def pairs(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows with their ids; without those that are too long or the same on both sides."""
        prompts = self._renderer.prompt_batch([row["real"][:-1] for row in rows])
        real = self._renderer.real_batch([row["real"] for row in rows], prompts, self._answer_limit)
        generated = self._renderer.real_batch([row["generated"] for row in rows], prompts, self._answer_limit)
        found = []
        for row, prompt_ids, real_ids, generated_ids in zip(rows, prompts, real, generated, strict=True):
            raw = row.pop("raw")
            if raw.get("prompt_ids") == prompt_ids and raw.get("real_ids") and raw.get("generated_ids"):
                self.own_tokens += 1  # the very tokens that the engine saw and gave
                real_ids, generated_ids = raw["real_ids"], raw["generated_ids"]
            if len(prompt_ids) > self._prompt_limit:
                self.left_out[f"with more than {self._prompt_limit} prompt tokens"] += 1
            elif real_ids == generated_ids:
                self.left_out["with the same tokens on both sides"] += 1
            else:
                finish = "stop" if generated_ids[-1] == self._renderer.eos_id else "length"
                found.append(
                    {**row, "prompt_ids": prompt_ids, "real_ids": real_ids, "generated_ids": generated_ids, "finish_reason": finish}
                )
        return found


if __name__ == "__main__":
    process.job_main(_work)
