"""The child that scores pairs under one frozen model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from spin_core.contracts.rows import SCORES
from spin_core.contracts.tables import read_rows, write_rows
from spin_core.lm.adapter import quantized
from spin_core.lm.device import compute_device
from spin_core.lm.layout import choose_layout, step_of
from spin_core.lm.logprobs import answer_logps
from spin_core.runtime.process import job_main
from spin_core.runtime.progress import Progress, print_event
from spin_core.scoring.beta import Surprise

_TOKENS = 8192  # tokens in one forward pass, padding included; changes memory and speed only


def _width(row: dict[str, Any]) -> int:
    """Tokens of its prompt and its longer answer."""
    return len(row["prompt_ids"]) + max(len(row["real_ids"]), len(row["generated_ids"]))


def _batches(rows: list[dict[str, Any]], packed: bool) -> list[list[int]]:
    """Indices of pairs, longest first, cut so that a batch stays within the token budget."""
    widths = [_width(row) for row in rows]
    exact = [sum(len(row[name]) for name in ("prompt_ids", "real_ids", "generated_ids")) for row in rows]
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


def _score(job: dict[str, Any]) -> None:
    device = compute_device()
    bf16 = job["precision"] == "bf16"
    files = {target: read_rows(Path(source)) for source, target in job["files"].items()}
    total, done, started = sum(map(len, files.values())), 0, time.monotonic()
    longest = max((_width(row) for rows in files.values() for row in rows), default=0)
    step = step_of(AutoConfig.from_pretrained(job["model"]), longest, job["backend"])
    print(step.why, flush=True)
    model: Any = None
    loaded: Any = ()
    for target, rows in files.items():
        quantize = job["quantize"].get(target)
        if loaded != quantize:
            begun, model = time.monotonic(), None  # one model in memory at a time
            model = _load(job["model"], quantize, bf16).to(device).eval()
            layout, loaded = choose_layout(model, step, rows, job["attention"], bf16), quantize
            started += time.monotonic() - begun  # speed is that of scoring
        logps = [(0.0, 0.0)] * len(rows)
        for batch in _batches(rows, packed=step.packed):
            prompts = [rows[i]["prompt_ids"] for i in batch]
            answers = [rows[i][side] for side in ("real_ids", "generated_ids") for i in batch]
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                real_B, generated_B = answer_logps(model, layout(prompts * 2, answers).to(device)).chunk(2)
            for index, real, generated in zip(batch, real_B.tolist(), generated_B.tolist(), strict=True):
                logps[index] = real, generated
            done += len(batch)
            print_event(Progress("scoring", done, total, "pairs", f"{done / (time.monotonic() - started):.1f} pairs/s"))
        content = [
            {"row_id": row["row_id"], "iteration": row["iteration"], "real_logp": real, "generated_logp": generated}
            for row, (real, generated) in zip(rows, logps, strict=True)
        ]
        write_rows(Path(job["out"]) / target, content, SCORES)
        if target == "scores.parquet":  # of train pairs
            Surprise.of([real for real, _ in logps], [len(row["real_ids"]) for row in rows]).write(Path(job["out"]))
    (Path(job["out"]) / "facts.json").write_text(json.dumps({"pairs_per_s": total / (time.monotonic() - started)}))


if __name__ == "__main__":
    job_main(_score)
