"""How the trainer is started over the devices of one machine or several: the only place of training that counts them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from spin_core.runtime.errors import BadInput

CONFIGS = Path(__file__).parents[2] / "recipes" / "accelerate"


@dataclass(frozen=True)
class Machines:
    """This machine's place among those that train together; rank 0 is the one that the others connect to."""

    count: int = 1
    rank: int = 0
    address: str = ""
    port: int = 0  # 0: one that is free

    @classmethod
    def of(cls, env: Mapping[str, str]) -> Self:
        """From NNODES, NODE_RANK, MASTER_ADDR and, where a firewall asks for a fixed one, MASTER_PORT. Raises BadInput."""
        if env.get("NNODES", "1") == "1":
            return cls()
        try:
            found = cls(int(env["NNODES"]), int(env["NODE_RANK"]), env["MASTER_ADDR"], int(env.get("MASTER_PORT", "0")))
        except KeyError as error:
            raise BadInput(f"NNODES={env['NNODES']} but {error.args[0]} is not set", remedy="set NODE_RANK and MASTER_ADDR too") from None
        except ValueError:
            raise BadInput("NNODES, NODE_RANK and MASTER_PORT must be whole numbers", remedy="set them as torchrun takes them") from None
        if not 0 <= found.rank < found.count:
            raise BadInput(f"NODE_RANK={found.rank} is not in 0 … {found.count - 1}", remedy="number the machines from 0")
        return found


_ALONE = Machines()


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
