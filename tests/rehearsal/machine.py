"""A machine with GPUs that are not there: an `nvidia-smi` that answers for them, while torch sees none and computes on the CPU."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from uuid import uuid4

FIRST = 80  # number of the first GPU: no machine has so many, so torch sees none of them on a machine with GPUs either
H100 = ("NVIDIA H100 80GB HBM3", 81559)  # name, MiB
A100 = ("NVIDIA A100-SXM4-80GB", 81920)
RTX = ("NVIDIA GeForce RTX 4090", 24564)
B200 = ("NVIDIA B200", 183359)

_SMI = """#!{python}
import sys
gpus = {gpus!r}
asked = next((word.split("=")[1].split(",") for word in sys.argv if word.startswith("--query-gpu=")), None)
if asked is None or not any(word.startswith("--format=csv,noheader") for word in sys.argv):
    sys.exit("this nvidia-smi answers --query-gpu=… --format=csv,noheader[,nounits] only")
unit = "" if "nounits" in sys.argv[-1] else " MiB"
for gpu in gpus:
    print(", ".join(gpu[name] + (unit if name.startswith("memory.") else "") for name in asked))
"""


def make_machine(folder: Path, count: int, card: tuple[str, int] = H100, used: int = 500) -> dict[str, str]:
    """The environment of a machine with `count` such GPUs, of which `used` MiB are taken. Their uuids are new, so nobody holds them."""
    name, total = card
    gpus = [
        {
            "index": str(FIRST + number),
            "uuid": f"GPU-{uuid4()}",
            "name": name,
            "driver_version": "580.1",
            "compute_cap": "7.5",  # none with bf16, which is slow on the CPU that does the work
            "memory.total": str(total),
            "memory.free": str(total - used),
            "memory.used": str(used),
        }
        for number in range(count)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(_SMI.format(python=sys.executable, gpus=gpus))
    program.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return environment | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
