"""The child that scores pairs under one frozen model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from spin_core.process import job_main
from spin_core.progress import Progress, print_event
from spin_core.rows import SCORES, read_rows, write_rows
from spin_core.training.logprobs import answer_logps, collate

_TOKENS = 8192  # padded tokens in one forward pass; changes memory and speed only


def use_bf16(precision: str) -> bool:
    """Whether to autocast: `auto` takes bf16 on a GPU that has it."""
    return precision == "bf16" or (precision == "auto" and torch.cuda.is_available() and torch.cuda.is_bf16_supported())


def _batches(lengths: list[int]) -> list[list[int]]:
    """Indices, longest first, cut so that rows × longest row stays within the token budget."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    batches: list[list[int]] = []
    for index in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= _TOKENS:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _score(job: dict[str, Any]) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).to(device).eval()
    files = {target: read_rows(Path(source)) for source, target in job["files"].items()}
    total, done, started = sum(map(len, files.values())), 0.0, time.monotonic()
    for target, rows in files.items():
        sequences = [(row["prompt_ids"], row[side]) for row in rows for side in ("real_ids", "generated_ids")]
        logps = [0.0] * len(sequences)
        for batch in _batches([len(p) + len(a) for p, a in sequences]):
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(job["precision"])):
                found = answer_logps(model, collate([sequences[i][0] for i in batch], [sequences[i][1] for i in batch]).to(device))
            for index, logp in zip(batch, found.tolist(), strict=True):
                logps[index] = logp
            done += len(batch) / 2
            print_event(Progress("scoring", done, total, "pairs", f"{done / (time.monotonic() - started):.1f} pairs/s"))
        content = [
            {"row_id": row["row_id"], "iteration": row["iteration"], "real_logp": logps[2 * i], "generated_logp": logps[2 * i + 1]}
            for i, row in enumerate(rows)
        ]
        write_rows(Path(job["out"]) / target, content, SCORES)


if __name__ == "__main__":
    job_main(_score)
