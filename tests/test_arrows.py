"""The arrows point one way: flows → tasks → spin_core, and the flow process never loads torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {"spin_core": {"prefect", "flows", "tasks"}, "tasks": {"flows"}}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_no_import_points_back(room: str) -> None:
    """spin_core must be usable without Prefect."""
    found = []
    for file in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            found += [f"{file}:{node.lineno} {name}" for name in names if name.split(".")[0] in FORBIDDEN[room]]  # type: ignore[attr-defined]
    assert found == []


def test_the_flow_process_stays_light() -> None:
    """Crash hooks import the flows in a new process, and a worker runs many flows: neither can pay for torch."""
    heavy = ("torch", "transformers", "vllm")
    code = f"import sys, flows.campaign, flows.iteration, flows.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
