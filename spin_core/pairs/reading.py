"""Pairs that others wrote down as text, tokenised: the layout of the official scripts and of their data sets on the hub.

They are read by `spinflow finetune`, and by a campaign that goes on from a published iteration (`start_pairs`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from spin_core.contracts.rows import ANSWERED, IDS, PAIRS, Message, row_id
from spin_core.contracts.tables import TableWriter
from spin_core.encoding.chat import Encoded, Refused, Renderer
from spin_core.encoding.ends import folder_vocabulary
from spin_core.pairs.shortcuts import Shortcuts, speller
from spin_core.runtime.errors import BadInput
from spin_core.sources.columns import absent
from spin_core.sources.shapes import to_talk
from spin_core.sources.talk import BadRow, choose_turns

# what our own answers have beside the official columns: the trainer then uses the very tokens that were sampled
TOKENS = ("prompt_ids", "real_ids", "generated_ids", "finish_reason")
COLUMNS = frozenset(("generated", "rejected", *TOKENS))  # to read beside those of the human conversation
_BLOCK = 256  # rows that are rendered at once
_Row = dict[str, Any]


def real_side(raw: Any) -> list[Message]:
    """The human conversation of a row of any known shape, `chosen` of their older files included. Raises BadRow."""
    return _side(raw, "real", "chosen")


def generated_side(raw: Any) -> list[Message]:
    """The conversation that ends in the model's answer."""
    return _side(raw, "generated", "rejected")


def _side(raw: Any, name: str, older: str) -> list[Message]:
    if isinstance(raw, Mapping) and (name in raw or older in raw):
        turns = raw.get(name, raw.get(older))
        messages = [] if absent(turns) else to_talk({"messages": turns}).messages
        if len(messages) < 2 or messages[-1]["role"] != "assistant":
            raise BadRow(f"{name} does not end in an answer")
        return messages
    if name != "real":
        raise BadRow(f"no column {name} or {older}")
    chosen = next(choose_turns(to_talk(raw), "last"))
    if isinstance(chosen, BadRow):
        raise chosen
    return chosen


class PairReader:
    """Raw rows to rows of PAIRS by one model's tokenizer; counts what it leaves out."""

    def __init__(
        self, model: Path, *, chat_template_kwargs: Mapping[str, Any], max_prompt_tokens: int, max_new_tokens: int, on_bad_row: str
    ) -> None:
        self._renderer = Renderer(model, chat_template_kwargs)
        self._ends = self._renderer.ends
        self._vocabulary = folder_vocabulary(model) or len(self._renderer.tokenizer)
        self._prompt_limit, self._answer_limit, self._on_bad_row = max_prompt_tokens, max_new_tokens, on_bad_row
        self._speller = speller(str(model))
        self._shortcuts = Shortcuts(self._ends)
        self._seen: set[tuple[str, int]] = set()
        self.left_out: Counter[str] = Counter()
        self.own_tokens = 0

    def row(self, raw: Any, iteration: int, where: str) -> _Row | None:
        """Both sides of a raw row, to be given to `write`; None for a copy of an earlier one."""
        try:
            real, generated = real_side(raw), generated_side(raw)
        except BadRow as error:
            raise BadInput(f"{where}: {error}", remedy="gather it again with spinflow gather") from None
        if real[:-1] != generated[:-1]:
            raise BadInput(f"{where}: its two sides have different prompts", remedy="mend the data")
        key = (row_id(real), iteration)
        if key in self._seen:
            self.left_out["copies of a row"] += 1
            return None
        self._seen.add(key)
        return {"row_id": key[0], "iteration": iteration, "sample": 0, "real": real, "generated": generated, "raw": raw, "where": where}

    def write(self, rows: Iterable[_Row], path: Path) -> dict[str, Any]:
        """Writes what can be used of `rows`, in order; returns facts with a message for people, and the warnings of `Shortcuts`."""
        rows = iter(rows)
        with TableWriter(path, PAIRS) as sink:
            while block := list(islice(rows, _BLOCK)):
                if pairs := self._pairs(block):
                    self._shortcuts.add(*(pa.array([pair[side] for pair in pairs], IDS) for side in ("real_ids", "generated_ids")))
                    sink.write(pa.Table.from_pylist(pairs, schema=PAIRS))
        message = f"{sink.rows:,} pairs, {self.own_tokens:,} of them with the tokens that were sampled"
        message += f"; left out: {self.told}" if self.left_out else ""
        facts = {"pairs": sink.rows, **self.left_out, "message": message, "shortcuts": self._shortcuts.aucs()}
        return facts | {"warnings": self._shortcuts.warnings(self._speller)}

    @property
    def told(self) -> str:
        """What was left out, for people."""
        return ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())

    def _pairs(self, rows: list[_Row]) -> list[_Row]:
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

    def _own_ids(self, row: _Row) -> _Row | Refused | None:
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
        return "stop" if ids[-1] in self._ends.ids else "length"

    def _rendered(self, rows: list[_Row]) -> Iterator[_Row | Refused]:
        sides = ([row[side] for row in rows] for side in ("real", "generated"))
        for real, generated in zip(*(self._renderer.encode(talks, self._answer_limit) for talks in sides), strict=True):
            if isinstance(real, Refused):
                yield Refused(real.kind, f"real: {real.reason}", real.remedy)
            elif isinstance(generated, Refused):
                yield Refused(generated.kind, f"generated: {generated.reason}", generated.remedy)
            else:
                yield self._pair(real, generated)

    def _pair(self, real: Encoded, generated: Encoded) -> _Row:
        ids = {"prompt_ids": real.prompt_ids, "real_ids": real.real_ids, "generated_ids": generated.real_ids}
        return ids | {"finish_reason": self._finish(generated.real_ids)}

    def _same(self, row: _Row, ids: _Row) -> bool:
        """As the campaign's gather has it: the same ids but for what ends the turn, or whole answers with the same text."""
        sides = [ids["real_ids"], ids["generated_ids"]]
        ended = [side[-1] in self._ends.ids for side in sides]
        real, generated = (side[:-1] if end else side for side, end in zip(sides, ended, strict=True))
        texts = {row[side][-1]["content"].strip() for side in ("real", "generated")}
        return bool(real == generated or (all(ended) and len(texts) == 1))

    def _refuse(self, where: str, refused: Refused) -> None:
        if self._on_bad_row == "error":
            raise BadInput(f"{where}: {refused.reason}", remedy=f"{refused.remedy}, or set on_bad_row: skip")
        self.left_out[refused.kind] += 1
