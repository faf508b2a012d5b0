"""What this machine lends to a child: GPUs, each held by one campaign at a time, and memory.

A GPU is held with `flock` on a file of its own, in a folder that every user of the machine can reach; the child inherits the
descriptor, so the lock lasts as long as either of them. The flow process asks `nvidia-smi`, never torch.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from spin_core.runtime.errors import BadInput, Cancelled, SpinflowError
from spin_core.runtime.progress import Progress, emit

LOCKS = Path("/tmp/spinflow-devices")  # not $TMPDIR: two campaigns must look in the same place
_MEMORY_PATIENCE_S = 10.0  # a child that was just killed gives its memory back within this time
_POLL_S = 0.5


def never() -> bool:
    """For callers whose wait nothing but an exception ends."""
    return False


@dataclass(frozen=True)
class Device:
    """One visible GPU."""

    name: str  # index as nvidia-smi counts, or what CUDA_VISIBLE_DEVICES calls it where nvidia-smi does not know it
    uuid: str
    free: int | None = None  # bytes
    total: int | None = None  # bytes


def visible() -> list[Device]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to this process; empty on a machine without one."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        names = sorted((path.name[6:] for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()), key=int)
    else:
        names = [name.strip() for name in listed.split(",")]
        names = [name for name in names if name not in {"", "-1"}]
    known = _ask_nvidia_smi() if names else []
    return [next((d for d in known if name == d.name or d.uuid.startswith(name)), Device(name, name)) for name in names]


def _ask_nvidia_smi() -> list[Device]:
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in lines:
        name, uuid, free, total = (part.strip() for part in line.split(","))
        # devices with unified memory answer [N/A]
        found.append(Device(name, uuid, *(int(mib) * 2**20 if mib.isdigit() else None for mib in (free, total))))
    return found


def groups(found: Sequence[Device], size: int) -> list[tuple[Device, ...]]:
    """The GPUs in groups of `size`, one an engine; what is left over stays idle. One empty group on a machine without GPUs."""
    if not found and size == 1:
        return [()]
    if size > len(found):
        raise BadInput(
            f"generation.tensor_parallel={size} needs {size} GPUs, {len(found)} are visible", remedy="lower it or set CUDA_VISIBLE_DEVICES"
        )
    return [tuple(found[i : i + size]) for i in range(0, len(found) - size + 1, size)]


def environment(group: Sequence[Device]) -> dict[str, str]:
    """What has a child see these GPUs only; without one, what has it keep the memory it has freed.

    glibc gives every large tensor's pages back, and the kernel zeroes them anew for the next one: a fifth of a training step's time.
    """
    if not group:
        return {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 40)}
    return {"CUDA_VISIBLE_DEVICES": ",".join(d.name for d in group), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


def precision(wanted: str) -> str:
    """`training.precision` with `auto` resolved: bf16 where the visible GPUs have it, as all since compute capability 8.0, else fp32.

    Decided before anything is named, so that what was trained in bf16 is never taken for what fp32 would have given.
    """
    if wanted != "auto":
        return wanted
    if not visible():
        return "fp32"
    try:
        command = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
        answers = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.split()
        return "bf16" if all(float(answer) >= 8.0 for answer in answers) else "fp32"
    except (OSError, ValueError, subprocess.SubprocessError):
        return "bf16"


class Hold:
    """GPUs that no other campaign uses until `release`. Give `fds` to the child, so that it holds them too."""

    def __init__(self, fds: Sequence[int] = ()) -> None:
        self.fds = tuple(fds)

    def release(self) -> None:
        """Gives the GPUs back once the child has ended; may be called twice."""
        for descriptor in self.fds:
            os.close(descriptor)
        self.fds = ()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def hold(group: Sequence[Device], ended: Callable[[], bool] = never, folder: Path = LOCKS) -> Hold:
    """Waits until nobody holds any of these GPUs, and holds all of them: all or none, so two campaigns cannot block each other.

    Raises Cancelled once `ended()` says so.
    """
    name = f"waiting for GPU {', '.join(d.name for d in group)}"
    started = time.monotonic()
    waited = False
    while (held := _try_to_hold(group, folder)) is None:
        waited = True
        emit(Progress(name, 0, 1, "", f"another campaign holds it, {time.monotonic() - started:.0f} s"))
        _pause(ended)
    if waited:
        emit(Progress(name, 1, 1))
    return held


def _try_to_hold(group: Sequence[Device], folder: Path) -> Hold | None:
    taken = Hold()
    for device in group:
        descriptor = _open(folder, re.sub(r"[^\w-]", "_", device.uuid))
        taken.fds += (descriptor,)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken.release()
            return None
    return taken


def _open(folder: Path, name: str) -> int:
    """Another user's file can be opened for reading only, and that is enough for flock."""
    if not folder.is_dir():
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            folder.chmod(0o1777)  # mkdir's mode is cut by the umask
    with suppress(FileExistsError):
        os.close(os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_RDONLY, 0o644))
    return os.open(folder / name, os.O_RDONLY)


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


def require_memory(need: int, what: str, ended: Callable[[], bool] = never, patience_s: float = _MEMORY_PATIENCE_S) -> None:
    """Waits a little for what a killed child still holds. Raises SpinflowError where `need` bytes do not become free."""
    deadline = time.monotonic() + patience_s
    while (free := available_memory()) < need:
        if time.monotonic() >= deadline:
            raise SpinflowError(
                f"{what} needs about {need / 2**30:.1f} GiB of memory, {max(0, free) / 2**30:.1f} GiB are free",
                remedy="end other programs or take a smaller model, and run again",
            )
        emit(Progress("waiting for memory", 0, 1, "", f"{free / 2**30:.1f} of {need / 2**30:.1f} GiB are free"))
        _pause(ended)


def require_gpu_memory(
    group: Sequence[Device], share: float, what: str, ended: Callable[[], bool] = never, patience_s: float = _MEMORY_PATIENCE_S
) -> None:
    """Waits until `share` of every GPU's memory is free; raises SpinflowError where it does not become so."""
    deadline = time.monotonic() + patience_s
    names = {device.uuid for device in group}
    while short := [d for d in _ask_nvidia_smi() if d.uuid in names and d.free is not None and d.total and d.free < share * d.total]:
        if time.monotonic() >= deadline:
            first = short[0]
            assert first.free is not None
            assert first.total is not None
            raise SpinflowError(
                f"{what} takes {share:.0%} of GPU {first.name}'s {first.total / 2**30:.0f} GiB, {first.free / 2**30:.0f} GiB are free",
                remedy="end the programs that nvidia-smi shows, and run again",
            )
        emit(Progress("waiting for memory", 0, 1, "", f"GPU {', '.join(d.name for d in short)}"))
        _pause(ended)


def _pause(ended: Callable[[], bool]) -> None:
    if ended():
        raise Cancelled("the run was ended")
    time.sleep(_POLL_S)
