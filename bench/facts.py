"""What a bench's result begins with: what was measured, where, of which state of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any


def facts(bench: str, *packages: str) -> dict[str, Any]:
    """Its name, this machine, the versions of those packages that are installed, and the commit."""
    machine = f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores"
    return {"bench": bench, "device": machine, "versions": versions(*packages), "commit": commit()}


def versions(*packages: str) -> dict[str, str]:
    """Of those that are installed, and of Python."""
    installed = {found.metadata["Name"]: found.version for found in distributions()}
    return {"python": platform.python_version()} | {name: installed[name] for name in packages if name in installed}


def commit() -> str:
    """The short hash of this checkout's commit; empty where there is no git."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
