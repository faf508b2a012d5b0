"""Starts the trainer with `accelerate launch`: the only place of training that knows how many devices there are."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

from spin_core import process
from spin_core.recipe import Recipe
from spin_core.store import Ref, Spec, Store

STAGE_VERSION = 3
# these change speed, memory or what a crash costs, never the result
_NOT_IN_DIGEST = {"backend", "attention", "tokens_per_micro_batch", "gradient_checkpointing", "save_steps", "report_to"}


def finetune(store: Store, recipe: Recipe, iteration: int, model: Ref, pairs: Ref, reference: Ref) -> Ref:
    """Trains θ_{t+1} from θ_t; resumes from the last checkpoint of a run that was killed."""
    settings = recipe.training_at(iteration).model_dump()
    params = {key: value for key, value in settings.items() if key not in _NOT_IN_DIGEST}
    spec = Spec("model", STAGE_VERSION, params, (model, pairs, reference))

    def write(staging: Path) -> dict[str, Any]:
        job = {
            "name": f"{recipe.name}-iter-{iteration}",
            "model": str(model.path),
            "pairs": str(pairs.path),
            "reference": str(reference.path),
            "training": settings,
            "tensorboard": str(store.home / "logs" / "tensorboard"),
            "work": str(store.work_dir(spec)),
            "out": str(staging),
        }
        log = store.log_path(f"finetune-{spec.digest}")
        process.run_job("spin_core.training.finetune_job", job, log, launcher=launcher(), name=f"iter-{iteration} · training")
        lines = [json.loads(line) for line in (staging / "metrics.jsonl").read_text().splitlines()]
        speed = statistics.harmonic_mean(line["pairs/s"] for line in lines)  # steps hold equal numbers of pairs
        return {"steps": lines[-1]["step"], "loss": lines[-1]["loss"], "pairs_per_s": speed}

    ref = store.build(spec, write)
    store.drop_work_dir(spec)
    return ref


def devices() -> int:
    """Visible NVIDIA devices, counted without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in {"", "-1"}])
    return len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()])


def launcher() -> list[str]:
    """The arguments between `python` and the job's module."""
    count = devices()
    processes = max(1, count)
    threads = max(1, len(os.sched_getaffinity(0)) // processes)  # accelerate would set one thread, at half the speed or less
    command = ["-m", "accelerate.commands.launch", "--num_processes", str(processes), "--num_machines", "1"]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", str(threads)]
    return [*command, "--cpu"] if count == 0 else [*command, "--multi_gpu"] if count > 1 else command
