"""Memory that a child will need: what is free on the machine and on its GPUs, asked before it starts."""

from __future__ import annotations

import json
import math
import re
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from spin_core.runtime import leftovers
from spin_core.runtime.devices import Device, ask_nvidia_smi, never, pause
from spin_core.runtime.errors import SpinflowError
from spin_core.runtime.progress import Progress, emit
from spin_core.store import Ref

_PATIENCE_S = 10.0  # a child that was just killed gives its memory back within this time


def available_memory() -> int:
    """Bytes that a new process can use: MemAvailable, and what the cgroup's limit leaves where there is one."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return min(int(line.split()[1]) * 1024, _cgroup_headroom())
    return _cgroup_headroom()


def _cgroup_headroom() -> int:
    headroom = 2**62
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = Path("/sys/fs/cgroup"), ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root, names = Path("/sys/fs/cgroup/memory"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        # inside a container the path can be the host's; then the limit is at the mount's root
        for folder in (root / path.strip("/"), root):
            with suppress(OSError, ValueError):
                limit, used = (int((folder / name).read_text()) for name in names)
                cache = re.search(r"^(?:total_)?inactive_file (\d+)", (folder / "memory.stat").read_text(), re.MULTILINE)
                headroom = min(headroom, limit - used + (int(cache[1]) if cache else 0))
                break
    return headroom


def weight_bytes(model: Path, bytes_per_weight: int) -> int:
    """The size of a model's weights in memory, from the headers of its safetensors files."""
    weights = 0
    for file in model.glob("*.safetensors"):
        with file.open("rb") as handle:
            header = json.loads(handle.read(struct.unpack("<Q", handle.read(8))[0]))
        weights += sum(math.prod(entry["shape"]) for key, entry in header.items() if key != "__metadata__")
    return weights * bytes_per_weight


@lru_cache
def fp32_bytes(model: Ref) -> int:
    """The size of a model's weights in memory, in fp32; where they are not on this machine, as they are stored, which is no more."""
    return model.bytes if model.source and not model.here else weight_bytes(model.folder, 4)


def require_memory(need: int, what: str, ended: Callable[[], bool] = never, patience_s: float = _PATIENCE_S) -> None:
    """Waits a little for what a killed child still holds. Raises SpinflowError where `need` bytes do not become free."""
    deadline = time.monotonic() + patience_s
    while (free := available_memory()) < need:
        if time.monotonic() >= deadline and not leftovers.ending(deadline):
            raise SpinflowError(
                f"{what} needs about {need / 2**30:.1f} GiB of memory, {max(0, free) / 2**30:.1f} GiB are free",
                remedy="end other programs or take a smaller model, and run again",
            )
        emit(Progress("waiting for memory", 0, 1, "", f"{free / 2**30:.1f} of {need / 2**30:.1f} GiB are free"))
        pause(ended)


def require_gpu_memory(
    group: Sequence[Device], share: float, what: str, ended: Callable[[], bool] = never, patience_s: float = _PATIENCE_S
) -> None:
    """Waits until `share` of every GPU's memory is free; raises SpinflowError where it does not become so."""
    deadline = time.monotonic() + patience_s
    names = {device.uuid for device in group}
    while short := [d for d in ask_nvidia_smi() if d.uuid in names and d.free is not None and d.total and d.free < share * d.total]:
        if time.monotonic() >= deadline and not leftovers.ending(deadline):
            first = short[0]
            assert first.free is not None
            assert first.total is not None
            raise SpinflowError(
                f"{what} takes {share:.0%} of GPU {first.name}'s {first.total / 2**30:.0f} GiB, {first.free / 2**30:.0f} GiB are free",
                remedy="end the programs that nvidia-smi shows, and run again",
            )
        emit(Progress("waiting for memory", 0, 1, "", f"GPU {', '.join(d.name for d in short)}"))
        pause(ended)
