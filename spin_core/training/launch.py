"""How the trainer is started over the devices of one machine or several: the only place of training that counts them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from spin_core.runtime.errors import BadInput
from spin_core.runtime.machine import Place

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"


def launcher(place: Place, sharding: str) -> list[str]:
    """`arguments`, asked where the child starts. Raises BadInput where DeepSpeed is wanted and not installed there."""
    if place.gpus and sharding.startswith("zero") and not find_spec("deepspeed"):
        raise BadInput(f"training.sharding: {sharding} needs DeepSpeed", remedy="pip install 'spinflow[train]', or take fsdp2")
    return arguments(place, sharding)


def arguments(place: Place, sharding: str) -> list[str]:
    """The arguments between `python` and the job's module: `accelerate launch` with a process a GPU, nothing for a lone process.

    It reads recipes/accelerate/<sharding>.yaml, so a default config of the user's changes nothing. Several machines meet at the
    place's address and port.
    """
    processes = place.gpus * place.count
    if not processes or (processes == 1 and sharding == "ddp"):
        return []
    threads = max(1, len(os.sched_getaffinity(0)) // place.gpus)  # accelerate would set one
    command = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{sharding}.yaml")]
    command += ["--num_processes", str(processes), "--num_cpu_threads_per_process", str(threads)]
    command += ["--num_machines", str(place.count), "--main_process_port", str(place.port)]  # 0 is a free one
    if place.count > 1:
        command += ["--machine_rank", str(place.rank), "--main_process_ip", place.address, "--same_network"]
    return command


def checkpoints(sharding: str, env: Mapping[str, str]) -> str:
    """The folder of the checkpoints that a process can continue from, by what its launcher told it.

    Each kind has its own files, DeepSpeed's are one a GPU; a lone process's are those of ddp.
    """
    if "WORLD_SIZE" not in env:
        return "ddp"
    return f"{sharding}-{env['WORLD_SIZE']}" if sharding.startswith("zero") else sharding
