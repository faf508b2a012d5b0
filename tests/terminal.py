"""The `spinflow` command inside this process, its children too: the same code, without a start of Python and torch for each."""

from __future__ import annotations

import importlib
import io
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from spin_core.runtime import process


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    error: str


def spinflow(*arguments: str) -> Done:
    """Runs a command to its end."""
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.setattr(sys, "argv", ["spinflow", *arguments])
        patch.setenv("COLUMNS", "200")
        try:
            main()
            status = 0
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else 1
    return Done(status, out.getvalue(), error.getvalue())


@contextmanager
def jobs_here() -> Iterator[None]:
    """Children's jobs run in this process until the block ends."""

    def run(module: str, job: Mapping[str, Any], log: Path, **_: Any) -> None:
        found = importlib.import_module(module)
        with redirect_stdout(io.StringIO()):
            (found.convert if hasattr(found, "convert") else found._work)(json.loads(json.dumps(job)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "run_job", run)
        yield
