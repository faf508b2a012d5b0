"""The child that tokenises prompts and human answers, in batches."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from spin_core.contracts.rows import ENCODED, REJECTED
from spin_core.contracts.tables import TableWriter, count_rows, iter_tables, split_files
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput
from spin_core.runtime.progress import Teller

_ROWS = 256  # rows that are rendered at once


def _work(job: dict[str, Any]) -> None:
    out = Path(job["out"])
    encoder = _Encoder(job)
    encoder.ends.write(out)
    facts: dict[str, Any] = {}
    with TableWriter(out / "left_out.parquet", REJECTED) as left_out:
        for split in encoder.sizes:
            with TableWriter(out / f"{split}.parquet", ENCODED) as sink:
                for rows, rejected in encoder.tables(split):
                    sink.write(rows)
                    left_out.write(rejected)
            if not sink.rows and encoder.sizes[split]:
                raise BadInput(f"no {split} row can be used: {encoder.problem}", remedy=encoder.remedy)
            facts[split] = sink.rows
    if left_out.rows and job["on_bad_row"] == "error":
        raise BadInput(f"{left_out.rows:,} rows cannot be used: {encoder.problem}", remedy=f"{encoder.remedy}, or set data.on_bad_row=skip")
    (out / "facts.json").write_text(
        json.dumps(facts | {"left_out": left_out.rows, "message": encoder.message(), "warnings": encoder.warnings()})
    )


class _Encoder:
    """Renders rows in batches, shows how far it is, and counts what it leaves out."""

    def __init__(self, job: dict[str, Any]) -> None:
        from spin_core.encoding.chat import Refused, Renderer

        self._refused = Refused
        self._renderer = Renderer(Path(job["model"]), job["chat_template_kwargs"])
        self.ends = self._renderer.ends
        self._files = split_files(Path(job["prompts"]))
        self._prompt_limit, self._answer_limit = job["max_prompt_tokens"], job["max_new_tokens"]
        self.sizes = {split: count_rows(file) for split, file in self._files.items()}
        self._first, self.remedy = "", ""
        self._kinds: Counter[str] = Counter()
        self._teller = Teller("", sum(self.sizes.values()), "rows")

    @property
    def problem(self) -> str:
        """What was left out, and the first of it."""
        return f"{self._counts()}; first {self._first}"

    def _counts(self) -> str:
        return ", ".join(f"{count:,} {kind}" for kind, count in self._kinds.most_common())

    def message(self) -> str:
        """What was left out; empty where nothing was."""
        return f"left out: {self.problem} (left_out.parquet)" if self._kinds else ""

    def warnings(self) -> list[str]:
        """What the template puts before human answers only."""
        return [
            f"the chat template begins {count:,} human answers with {text!r}, which no sampled answer is given: it tells the two apart; "
            "set model.chat_template_kwargs (enable_thinking: false) or model.chat_template"
            for text, count in self._renderer.added.most_common(1)
        ]

    def tables(self, split: str) -> Iterator[tuple[pa.Table, pa.Table]]:
        """(encoded, left out) rows of a split, batch by batch."""
        for table in iter_tables(self._files[split], ["row_id", "row_number", "real"], _ROWS):
            rows, left_out = [], []
            source = table.to_pylist()
            for row, found in zip(source, self._renderer.encode([row["real"] for row in source], self._answer_limit), strict=True):
                if not isinstance(found, self._refused) and len(found.prompt_ids) > self._prompt_limit:
                    found = self._too_long(len(found.prompt_ids))
                if isinstance(found, self._refused):
                    self._kinds[found.kind] += 1
                    self._first = self._first or f"row {row['row_number']}: {found.reason}"
                    self.remedy = self.remedy or found.remedy
                    left_out.append({"row_number": row["row_number"], "reason": str(found)})
                else:
                    rows.append({"row_id": row["row_id"], "prompt_ids": found.prompt_ids, "real_ids": found.real_ids})
            self._teller.add(len(source))
            yield pa.Table.from_pylist(rows, schema=ENCODED), pa.Table.from_pylist(left_out, schema=REJECTED)

    def _too_long(self, tokens: int) -> Any:
        limit = self._prompt_limit
        reason = f"its prompt has {tokens} tokens, over data.max_prompt_tokens={limit}"
        return self._refused(f"with a prompt over {limit} tokens", reason, "raise data.max_prompt_tokens")


if __name__ == "__main__":
    process.job_main(_work)
