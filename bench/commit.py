"""Which state of the code a bench measured."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """The short hash of this checkout's commit; empty where there is no git."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
