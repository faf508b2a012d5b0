"""The GPUs that this machine lends to a child, each held by one campaign at a time.

A GPU is held with `flock` on a file of its own, in a folder that every user of the machine can reach; the child inherits the
descriptor, so the lock lasts as long as either of them. The file says who holds it. The flow process asks `nvidia-smi`, never torch.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType

from spin_core.runtime.errors import BadInput, Cancelled
from spin_core.runtime.progress import Progress, emit

LOCKS = Path("/tmp/spinflow-devices")  # not $TMPDIR: two campaigns must look in the same place
_POLL_S = 0.5
_held: dict[str, str] = {}  # uuid → what for: the GPUs that this process holds
_lock = threading.Lock()
_run = ""  # what others are told of this process
_lent = False


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
    model: str = ""  # "NVIDIA H100 80GB HBM3"
    capability: float = 8.0  # CUDA's; nvidia-smi does not know a slice of a GPU (MIG), and all that can be sliced have it


def visible() -> list[Device]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves to this process, all that nvidia-smi lists where it is not set; empty without any."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return ask_nvidia_smi()
    names = [name.strip() for name in listed.split(",")]
    names = [name for name in names if name not in {"", "-1"}]
    known = ask_nvidia_smi() if names else []
    return [next((d for d in known if name == d.name or d.uuid.startswith(name)), Device(name, name)) for name in names]


def ask_nvidia_smi() -> list[Device]:
    """All GPUs of the machine with what is free now; empty where there is no driver."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,memory.free,memory.total,compute_cap,name", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in lines:
        name, uuid, free, total, capability, model = (part.strip() for part in line.split(",", 5))
        device = Device(name, uuid, _bytes(free), _bytes(total), model)
        found.append(replace(device, capability=float(capability)) if capability[0].isdigit() else device)
    return found


def _bytes(mib: str) -> int | None:
    """Devices with unified memory answer [N/A]."""
    return int(mib) * 2**20 if mib.isdigit() else None


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
    return wanted if wanted != "auto" else _best_precision(os.environ.get("CUDA_VISIBLE_DEVICES"), shutil.which("nvidia-smi"))


@lru_cache
def _best_precision(_visible: str | None, _program: str | None) -> str:
    """Asked for every artifact's name, and nvidia-smi can take seconds."""
    found = visible()
    return "bf16" if found and all(device.capability >= 8.0 for device in found) else "fp32"


class Hold:
    """GPUs that no other campaign uses until `release`. Give `fds` to the child, so that it holds them too."""

    def __init__(self, fds: Sequence[int] = (), uuids: Sequence[str] = ()) -> None:
        self.fds, self._uuids = tuple(fds), tuple(uuids)

    def release(self) -> None:
        """Gives the GPUs back once the child has ended; may be called twice."""
        for descriptor in self.fds:
            os.close(descriptor)
        with _lock:
            for uuid in self._uuids:
                _held.pop(uuid, None)
        self.fds, self._uuids = (), ()

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def introduce(run: str) -> None:
    """What those are told who wait for this process's GPUs, for example "campaign demo"."""
    global _run
    _run = run


def lend() -> None:
    """For a process whose GPUs a scheduler has chosen: nobody else has them, so none is locked here."""
    global _lent
    _lent = True


def hold(group: Sequence[Device], ended: Callable[[], bool] = never, folder: Path | None = None, *, purpose: str = "") -> Hold:
    """Waits until nobody holds any of these GPUs, and holds all of them: all or none, so two campaigns cannot block each other.

    `purpose` is the stage, for whoever waits. Raises Cancelled once `ended()` says so, and RuntimeError where this process holds one
    of them already: nobody else could give it back, so the wait would never end.
    """
    if _lent:
        return Hold()
    purpose = purpose or "another stage"
    with _lock:
        if own := next((device for device in group if device.uuid in _held), None):
            raise RuntimeError(f"{purpose} asks for GPU {own.name}, which this run holds itself for {_held[own.uuid]}: a bug in spinflow")
        _held.update({device.uuid: purpose for device in group})
    uuids = [device.uuid for device in group]
    try:
        held = _wait_for(group, ended, folder or LOCKS)
    except BaseException:
        Hold(uuids=uuids).release()
        raise
    for descriptor in held.fds:
        _sign(descriptor, purpose)
    return Hold(held.fds, uuids)


def _wait_for(group: Sequence[Device], ended: Callable[[], bool], folder: Path) -> Hold:
    name = f"waiting for GPU {', '.join(device.name for device in group)}"
    started = time.monotonic()
    waited = False
    while (held := _try_to_hold(group, folder)) is None:
        waited = True
        taken = next((device for device in group if _is_held(device, folder)), group[0])
        which = "" if len(group) == 1 else f"GPU {taken.name} is "
        emit(Progress(name, 0, 1, "", f"{which}held by {holder(taken, folder)}, {time.monotonic() - started:.0f} s"))
        pause(ended)
    if waited:
        emit(Progress(name, 1, 1))
    return held


def holder(device: Device, folder: Path) -> str:
    """Who holds a GPU, in words. What its file says is believed where the kernel does not name another process."""
    file = _file(folder, device)
    try:
        told = json.loads(file.read_text())
        pid, name = int(told["pid"]), f" ({told['run']})" if told["run"] else ""
    except (OSError, ValueError, KeyError, TypeError):
        pid, name = 0, ""
    known = _locked_by(file)
    if known not in {0, pid}:
        return f"process {known}"
    if not pid:
        return "another program"
    if pid == os.getpid():
        return "a child of this run that is about to end"
    return f"process {pid}{name}" if Path(f"/proc/{pid}").exists() else f"what process {pid}{name} has left running"


def _locked_by(file: Path) -> int:
    """The process that took the lock, by the kernel's list; 0 where that does not say."""
    try:
        inode = str(file.stat().st_ino)
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return 0
    # "3: FLOCK ADVISORY WRITE 4711 fe:00:2146601 0 EOF"
    return next((int(line[4]) for line in lines if line[1] == "FLOCK" and line[5].rpartition(":")[2] == inode), 0)


def _sign(descriptor: int, purpose: str) -> None:
    """Another user's file cannot always be written; then it names nobody, or the wrong one, which `holder` finds out."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "run": ", ".join(filter(None, (_run, purpose)))}).encode(), 0)


def _is_held(device: Device, folder: Path) -> bool:
    held = _try_to_hold([device], folder)
    if held is not None:
        held.release()
    return held is None


def _try_to_hold(group: Sequence[Device], folder: Path) -> Hold | None:
    taken = Hold()
    for device in group:
        descriptor = _open(_file(folder, device))
        taken.fds += (descriptor,)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            taken.release()
            return None
    return taken


def _file(folder: Path, device: Device) -> Path:
    return folder / re.sub(r"[^\w-]", "_", device.uuid)


def _open(file: Path) -> int:
    """For reading only where another user owns the file and it says so: that is enough for flock."""
    if not file.parent.is_dir():
        with suppress(FileExistsError):
            file.parent.mkdir(parents=True)
            file.parent.chmod(0o1777)  # mkdir's mode is cut by the umask
    with suppress(FileExistsError):
        made = os.open(file, os.O_CREAT | os.O_EXCL | os.O_RDONLY, 0o666)
        os.fchmod(made, 0o666)  # whoever holds the GPU writes its name
        os.close(made)
    try:
        return os.open(file, os.O_RDWR | os.O_NOFOLLOW)  # the folder is everybody's: no link may lead to a file of ours
    except PermissionError:
        return os.open(file, os.O_RDONLY | os.O_NOFOLLOW)


def pause(ended: Callable[[], bool]) -> None:
    """A moment between two looks; raises Cancelled once `ended()` says so."""
    if ended():
        raise Cancelled("the run was ended")
    time.sleep(_POLL_S)
