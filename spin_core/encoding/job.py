"""The child that tokenises prompts and human answers, in batches."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from spin_core.contracts.rows import ENCODED, REJECTED
from spin_core.contracts.tables import TableWriter, count_rows, iter_tables
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput
from spin_core.runtime.progress import Progress, print_event

_ROWS = 256  # rows that are rendered at once
_EVENT_EVERY_S = 0.5


def _work(job: dict[str, Any]) -> None:
    encoder = _Encoder(job)
    with TableWriter(Path(job["out"]) / "left_out.parquet", REJECTED) as left_out:
        for split in ("train", "test"):
            with TableWriter(Path(job["out"]) / f"{split}.parquet", ENCODED) as sink:
                for rows, rejected in encoder.tables(split):
                    sink.write(rows)
                    left_out.write(rejected)
            if not sink.rows and encoder.sizes[split]:
                raise BadInput(
                    f"no {split} row has a prompt within data.max_prompt_tokens={job['max_prompt_tokens']}", remedy="raise the limit"
                )
    if left_out.rows and job["on_bad_row"] == "error":
        raise BadInput(
            f"{left_out.rows:,} prompts are too long, first: {encoder.first_left_out}", remedy="raise it or set data.on_bad_row=skip"
        )
    facts: dict[str, Any] = {split: count_rows(Path(job["out"]) / f"{split}.parquet") for split in ("train", "test", "left_out")}
    if left_out.rows:
        facts["message"] = f"{left_out.rows:,} prompts over {job['max_prompt_tokens']} tokens were left out (left_out.parquet)"
    (Path(job["out"]) / "facts.json").write_text(json.dumps(facts))


class _Encoder:
    """Renders prompts in batches and shows how far it is."""

    def __init__(self, job: dict[str, Any]) -> None:
        from spin_core.encoding.chat import Renderer

        self._renderer = Renderer(Path(job["model"]))
        self._files = {split: Path(job["prompts"]) / f"{split}.parquet" for split in ("train", "test")}
        self._prompt_limit, self._answer_limit = job["max_prompt_tokens"], job["max_new_tokens"]
        self.sizes = {split: count_rows(file) for split, file in self._files.items()}
        self.first_left_out = ""
        self._done, self._shown = 0, time.monotonic()

    def tables(self, split: str) -> Iterator[tuple[pa.Table, pa.Table]]:
        """(encoded, left out) rows of a split, batch by batch."""
        number = 0
        for table in iter_tables(self._files[split], ["row_id", "real"], _ROWS):
            talks, ids = table["real"].to_pylist(), table["row_id"].to_pylist()
            prompts = self._renderer.prompt_batch([talk[:-1] for talk in talks])
            kept = [i for i, prompt in enumerate(prompts) if len(prompt) <= self._prompt_limit]
            answers = self._renderer.real_batch([talks[i] for i in kept], [prompts[i] for i in kept], self._answer_limit)
            rows = [{"row_id": ids[i], "prompt_ids": prompts[i], "real_ids": answer} for i, answer in zip(kept, answers, strict=True)]
            left_out = [
                {"row_number": number + i, "reason": self._reason(split, ids[i], len(prompt))}
                for i, prompt in enumerate(prompts)
                if len(prompt) > self._prompt_limit
            ]
            number += len(talks)
            self._show(len(talks))
            yield pa.Table.from_pylist(rows, schema=ENCODED), pa.Table.from_pylist(left_out, schema=REJECTED)

    def _reason(self, split: str, row_id: str, tokens: int) -> str:
        reason = f"{split} row {row_id}: the prompt has {tokens} tokens, over data.max_prompt_tokens={self._prompt_limit}"
        self.first_left_out = self.first_left_out or reason
        return reason

    def _show(self, rows: int) -> None:
        self._done += rows
        if time.monotonic() - self._shown > _EVENT_EVERY_S:
            self._shown = time.monotonic()
            print_event(Progress("", self._done, sum(self.sizes.values()), "rows"))


if __name__ == "__main__":
    process.job_main(_work)
