"""The child that scores shards of pairs under one frozen model; there is one on every device."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from spin_core.contracts.tables import RowReader, id_lists
from spin_core.lm.adapter import quantized
from spin_core.lm.device import compute_device
from spin_core.lm.layout import choose_layout, step_of
from spin_core.lm.logprobs import answer_logps
from spin_core.runtime.process import job_main
from spin_core.runtime.progress import Teller
from spin_core.scoring.scores import IDS, SECONDS, SHARD_SCORES
from spin_core.store.files import whole
from spin_core.store.shares import untaken

_TOKENS = 8192  # tokens in one forward pass, padding included; changes memory and speed only
_SIDES = ("prompt_ids", "real_ids", "generated_ids")
Rows = Sequence[tuple[list[int], list[int], list[int]]]  # ids of prompt, human answer and sampled answer


def _width(row: tuple[list[int], list[int], list[int]]) -> int:
    """Tokens of its prompt and its longer answer."""
    return len(row[0]) + max(len(row[1]), len(row[2]))


def _longest(rows: Rows) -> int:
    return max(map(_width, rows), default=0)


def _batches(rows: Rows, packed: bool) -> list[list[int]]:
    """Indices of pairs, longest first, cut so that a batch stays within the token budget."""
    widths = [_width(row) for row in rows]
    exact = [sum(map(len, row)) for row in rows]
    batches: list[list[int]] = []
    tokens = 0
    for index in sorted(range(len(rows)), key=lambda i: -widths[i]):
        cost = exact[index] if packed else 2 * widths[batches[-1][0] if batches else index]  # padded to the first pair's width
        if batches and tokens + cost <= _TOKENS:
            batches[-1].append(index)
            tokens += cost
        else:
            batches.append([index])
            tokens = exact[index] if packed else 2 * widths[index]
    return batches


def _load(path: str, quantize: str | None, bf16: bool) -> Any:
    """The fp32 model. Of a quantised one its rounded weights, unpacked: kernels for packed ones round differently with no gradient."""
    model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **quantized(quantize, bf16))
    return model.dequantize(torch.float32) if quantize else model


class Scorer:
    """One model on this child's device."""

    def __init__(self, job: dict[str, Any], quantize: str | None, rows: Rows) -> None:
        self._config, self._backend = AutoConfig.from_pretrained(job["model"]), job["backend"]
        step = step_of(self._config, _longest(rows), self._backend)
        print(step.why, flush=True)
        self._packed = step.packed
        self._device = compute_device()
        self._bf16 = job["precision"] == "bf16"
        self._model: Any = _load(job["model"], quantize, self._bf16).to(self._device).eval()
        proof = [dict(zip(_SIDES, row, strict=True)) for row in rows[:2]]
        self._layout = choose_layout(self._model, step, proof, job["attention"], self._bf16)

    def batches(self, rows: Rows) -> list[list[int]]:
        """Indices of the pairs of a shard that are scored at once; raises BadInput where one is too long for the model."""
        step_of(self._config, _longest(rows), self._backend)
        return _batches(rows, packed=self._packed)

    def score(self, rows: Rows) -> tuple[list[float], list[float]]:
        """Log-probs of the human and of the sampled answers, nats."""
        prompts = [prompt for prompt, _, _ in rows]
        answers = [real for _, real, _ in rows] + [generated for _, _, generated in rows]
        with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            real_B, generated_B = answer_logps(self._model, self._layout(prompts * 2, answers).to(self._device)).chunk(2)
        return real_B.tolist(), generated_B.tolist()


class _Tally:
    """What this child has scored, for people."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._teller, self._devices = Teller("scoring", job["total"], "pairs", 0 if job["part"] else job["done"]), job["parts"]
        self._pairs, self._seconds = 0, 0.0

    def add(self, pairs: int, seconds: float) -> None:
        """Tells of a batch."""
        self._pairs, self._seconds = self._pairs + pairs, self._seconds + seconds
        self._teller.add(pairs, self._rate)

    def end(self) -> None:
        """Tells what this child has done: others may do the rest."""
        self._teller.tell(self._rate)

    @property
    def _rate(self) -> str:
        rate = f"{self._pairs / max(self._seconds, 1e-9):.1f} pairs/s" if self._pairs else ""
        return f"{rate} on each of {self._devices} devices" if rate and self._devices > 1 else rate


def _score_shard(scorer: Scorer, rows: Rows, ids: pa.Table, tally: _Tally) -> pa.Table:
    """A shard's scores, in its order."""
    begun = time.monotonic()
    logps = [(0.0, 0.0)] * len(rows)
    for batch in scorer.batches(rows):
        started = time.monotonic()
        for index, real, generated in zip(batch, *scorer.score([rows[i] for i in batch]), strict=True):
            logps[index] = real, generated
        tally.add(len(batch), time.monotonic() - started)
    schema = SHARD_SCORES.with_metadata({SECONDS: str(time.monotonic() - begun)})
    scored = [*map(list, zip(*logps, strict=True)), [len(real) for _, real, _ in rows]]
    return pa.table(dict(zip(schema.names, [*ids.columns, *scored], strict=True)), schema=schema)


def _score(job: dict[str, Any]) -> None:
    """Takes one shard after the other that no other child has taken."""
    tally = _Tally(job)
    readers: dict[str, RowReader] = {}
    scorer: Scorer | None = None
    loaded: str | None = None
    shards = {Path(shard["file"]): shard for shard in job["shards"]}
    for target in untaken(shards, job.get("shared", "")):
        shard = shards[target]
        if shard["source"] not in readers:
            readers = {shard["source"]: RowReader(Path(shard["source"]), [*IDS, *_SIDES])}
        table = readers[shard["source"]].read(shard["start"], shard["stop"])
        rows = list(zip(*(id_lists(table[name]) for name in _SIDES), strict=True))
        if scorer is None or loaded != shard["quantize"]:
            scorer = None  # one model in memory at a time
            scorer, loaded = Scorer(job, shard["quantize"], rows), shard["quantize"]
        found = _score_shard(scorer, rows, table.select(IDS), tally)
        with whole(target) as part:
            pq.write_table(found, part, compression="zstd")
    tally.end()


if __name__ == "__main__":
    job_main(_score)
