"""Benches that need no model, at their smallest: each still runs on the code that is here, and ends with its line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALLEST = [
    "gather --rows 2000",
    "reformat --rows 2000",
    "scale --rows 2000",
    "orchestration --shards 20",
    "object_store --gb 0.01 --shards 4 --repeat 1",
    "scale_out --run 2 32 16 1000",
]


@pytest.mark.long
@pytest.mark.parametrize("words", SMALLEST)
def test_a_bench_runs(words: str) -> None:
    """If it fails, a figure in the docs cannot be measured again: what it replaces has moved, or a default has."""
    name, *options = words.split()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-m", f"bench.{name}", *options]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["bench"] == name
