"""Starts the trainer, over several devices with `accelerate launch`: the only place of training that counts them."""

from __future__ import annotations

import json
import os
import statistics
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spin_core.recipe import Recipe
from spin_core.runtime import devices, process
from spin_core.runtime.errors import BadInput
from spin_core.store import Ref, Spec, Store
from spin_core.training.machines import Machines, invited

STAGE_VERSION = 3
# these change speed, memory or what a crash costs, never the result
_NOT_IN_DIGEST = {"backend", "attention", "tokens_per_micro_batch", "gradient_checkpointing", "save_steps", "report_to", "sharding"}
_JOB = "spin_core.training.job"
_ALONE = Machines()
CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"


def finetune(store: Store, recipe: Recipe, iteration: int, model: Ref, pairs: Ref, reference: Ref) -> Ref:
    """Trains θ_{t+1} from θ_t; resumes from the last checkpoint of a run that was killed."""
    settings = recipe.training_at(iteration).model_dump()
    params = {key: value for key, value in settings.items() if key not in _NOT_IN_DIGEST}
    spec = Spec("model", STAGE_VERSION, params, (model, pairs, reference))

    def write(staging: Path) -> dict[str, Any]:
        group, machines = devices.visible(), Machines.of(os.environ)
        sharding: str = settings["sharding"]
        if group and sharding.startswith("zero") and not find_spec("deepspeed"):
            raise BadInput(f"training.sharding: {sharding} needs DeepSpeed", remedy="pip install 'spinflow[train]', or take fsdp2")
        work = store.work_dir(spec) / _checkpoints(sharding, len(group) * machines.count)
        work.mkdir(exist_ok=True)
        job = {
            "name": f"{recipe.name}-iter-{iteration}",
            "model": str(model.path),
            "pairs": str(pairs.path),
            "reference": str(reference.path),
            "training": settings,
            "tensorboard": str(store.home / "logs" / "tensorboard"),
            "work": str(work),
            "out": str(staging),
        }
        training = {"module": _JOB, "job": job, "sharding": sharding, "gpus": len(group)}
        with devices.hold(group) as held, invited(machines, work.parent, training) as place:
            process.run_job(
                _JOB,
                job,
                store.log_path(f"finetune-{spec.digest}"),
                launcher=launcher(len(group), sharding, place),
                name=f"iter-{iteration} · training",
                env=devices.environment(group),
                fds=held.fds,
            )
        lines = [json.loads(line) for line in (staging / "metrics.jsonl").read_text().splitlines()]
        speed = statistics.harmonic_mean(line["pairs/s"] for line in lines)  # steps hold equal numbers of pairs
        return {"steps": lines[-1]["step"], "loss": lines[-1]["loss"], "pairs_per_s": speed}

    ref = store.build(spec, write)
    store.drop_work_dir(spec)
    return ref


def _checkpoints(sharding: str, gpus: int) -> str:
    """The folder of the checkpoints that this run can continue from: each kind has its own files, DeepSpeed's are one a GPU."""
    if not gpus:
        return "ddp"
    return f"{sharding}-{gpus}" if sharding.startswith("zero") else sharding


def launcher(gpus: int, sharding: str, machines: Machines = _ALONE) -> list[str]:
    """The arguments between `python` and the job's module: `accelerate launch` with a process a GPU, nothing for a lone process.

    It reads recipes/accelerate/<sharding>.yaml, so a default config of the user's changes nothing. Several machines meet at
    `machines.address` and `port`. Raises BadInput for several machines without a GPU.
    """
    if machines.count > 1 and not gpus:
        raise BadInput("several machines train on GPUs only, and none is visible here", remedy="unset NNODES")
    processes = gpus * machines.count
    if not processes or (processes == 1 and sharding == "ddp"):
        return []
    threads = max(1, len(os.sched_getaffinity(0)) // gpus)  # accelerate would set one
    command = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{sharding}.yaml")]
    command += ["--num_processes", str(processes), "--num_cpu_threads_per_process", str(threads)]
    command += ["--num_machines", str(machines.count), "--main_process_port", str(machines.port)]  # 0 is a free one
    if machines.count > 1:
        command += ["--machine_rank", str(machines.rank), "--main_process_ip", machines.address, "--same_network"]
    return command
