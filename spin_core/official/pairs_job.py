"""The child that tokenises pairs of the official layout."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from spin_core.contracts.rows import ANSWERED, IDS, PAIRS, TRAIN_FILE, row_id
from spin_core.contracts.tables import TableWriter
from spin_core.encoding.chat import Encoded, Refused, Renderer
from spin_core.encoding.ends import folder_vocabulary
from spin_core.official.files import TOKENS, generated_side, real_side
from spin_core.pairs.shortcuts import Shortcuts, speller
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
    shortcuts = Shortcuts(maker.ends)
    with TableWriter(Path(job["out"]) / TRAIN_FILE, PAIRS) as sink:
        while block := list(itertools.islice(rows, _BLOCK)):
            if pairs := maker.pairs(block):
                shortcuts.add(*(pa.array([pair[side] for pair in pairs], IDS) for side in ("real_ids", "generated_ids")))
                sink.write(pa.Table.from_pylist(pairs, schema=PAIRS))
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in maker.left_out.items())
    if not sink.rows:
        raise BadInput(f"dataset_mixer: no pair is left to train on ({left_out})", remedy="raise max_prompt_length, or look at the data")
    message = f"{sink.rows:,} pairs, {maker.own_tokens:,} of them with the tokens that were sampled"
    message += f"; left out: {left_out}" if left_out else ""
    facts = {"pairs": sink.rows, **maker.left_out, "message": message, "shortcuts": shortcuts.aucs()}
    facts["warnings"] = shortcuts.warnings(speller(job["model"]))
    (Path(job["out"]) / "facts.json").write_text(json.dumps(facts))


class _Maker:
    """Rows of any official file to rows of PAIRS; counts what it leaves out."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._renderer = Renderer(Path(job["model"]), job["chat_template_kwargs"])
        self.ends = self._renderer.ends
        self._vocabulary = folder_vocabulary(Path(job["model"])) or len(self._renderer.tokenizer)
        self._prompt_limit, self._answer_limit = job["max_prompt_tokens"], job["max_new_tokens"]
        self._split, self._on_bad_row = job["split"], job["on_bad_row"]
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
                where = f"{entry['name']} row {number}"
                yield {"row_id": key[0], "iteration": place, "sample": 0, "real": real, "generated": generated, "raw": raw, "where": where}

    def pairs(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The rows with their ids; without those that are too long, the same on both sides, or cannot be rendered."""
        own = [self._own_ids(row) for row in rows]
        rendered = iter(self._rendered([row for row, ids in zip(rows, own, strict=True) if ids is None]))
        found = []
        for row, brought in zip(rows, own, strict=True):
            ids = brought if brought is not None else next(rendered)
            if isinstance(ids, Refused):
                self._refuse(row["where"], ids)
            elif len(ids["prompt_ids"]) > self._prompt_limit:
                self.left_out[f"with more than {self._prompt_limit} prompt tokens"] += 1
            elif self._same(row, ids):
                self.left_out["with the same answer on both sides"] += 1
            else:
                self.own_tokens += brought is not None
                found.append({name: row[name] for name in ("row_id", "iteration", "sample", "real", "generated")} | ids)
        return found

    def _own_ids(self, row: dict[str, Any]) -> dict[str, Any] | Refused | None:
        """The very tokens that the engine saw and gave, whatever a template renders today; None where the row has text only."""
        raw = row["raw"]
        ids = {name: raw.get(name) for name in ("prompt_ids", "real_ids", "generated_ids")}
        if not all(isinstance(value, list) and value for value in ids.values()):
            return None
        for name, value in ids.items():
            if not all(type(token) is int and 0 <= token < self._vocabulary for token in value):
                reason = f"{name} has entries that are no token of this model (it has {self._vocabulary:,})"
                return Refused("with tokens of another model", reason, "train the model that the pairs were sampled with")
        finish = raw.get("finish_reason")
        return ids | {"finish_reason": finish if finish in ANSWERED else self._finish(ids["generated_ids"])}

    def _finish(self, ids: list[int]) -> str:
        return "stop" if ids[-1] in self.ends.ids else "length"

    def _rendered(self, rows: list[dict[str, Any]]) -> Iterator[dict[str, Any] | Refused]:
        sides = ([row[side] for row in rows] for side in ("real", "generated"))
        for real, generated in zip(*(self._renderer.encode(talks, self._answer_limit) for talks in sides), strict=True):
            if isinstance(real, Refused):
                yield Refused(real.kind, f"real: {real.reason}", real.remedy)
            elif isinstance(generated, Refused):
                yield Refused(generated.kind, f"generated: {generated.reason}", generated.remedy)
            else:
                yield self._pair(real, generated)

    def _pair(self, real: Encoded, generated: Encoded) -> dict[str, Any]:
        ids = {"prompt_ids": real.prompt_ids, "real_ids": real.real_ids, "generated_ids": generated.real_ids}
        return ids | {"finish_reason": self._finish(generated.real_ids)}

    def _same(self, row: dict[str, Any], ids: dict[str, Any]) -> bool:
        """As the campaign's gather has it: the same ids but for what ends the turn, or whole answers with the same text."""
        sides = [ids["real_ids"], ids["generated_ids"]]
        ended = [side[-1] in self.ends.ids for side in sides]
        real, generated = (side[:-1] if end else side for side, end in zip(sides, ended, strict=True))
        texts = {row[side][-1]["content"].strip() for side in ("real", "generated")}
        return bool(real == generated or (all(ended) and len(texts) == 1))

    def _refuse(self, where: str, refused: Refused) -> None:
        if self._on_bad_row == "error":
            raise BadInput(f"{where}: {refused.reason}", remedy=f"{refused.remedy}, or set on_bad_row: skip")
        self.left_out[refused.kind] += 1


if __name__ == "__main__":
    process.job_main(_work)
