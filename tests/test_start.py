"""docs/start.md: every command of the page is one that there is, and all of them run, in the page's order."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import typer

from flows.cli import app
from tests.tiny import make_model

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "start.md"
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL) for line in block.splitlines()]
# with the slow engine: vLLM's start alone takes longer than a tiny model's whole campaign
SPINFLOW = """#!{python}
import sys
from spin_core.generation import vllm_server
vllm_server.installed = lambda: ""
from flows.cli import main
main()
"""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_is_there(command: str) -> None:
    """By the command line's own parser: a flag that was renamed breaks the page."""
    words = shlex.split(command.partition("| ")[2] or command)
    assert words[0] == "spinflow"
    group = typer.main.get_command(app)
    found = group.get_command(typer.Context(group), words[1])  # type: ignore[attr-defined]
    assert found is not None, words[1]
    found.make_context(words[1], words[2:])


def test_its_pictures_and_pages_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGE.read_text()):
        assert (PAGE.parent / target).exists(), target


@pytest.mark.long
def test_the_page_runs(tmp_path: Path) -> None:
    """From a model and rows to an exported model; while it runs it is watched, and the home is cleaned again and again."""
    make_model(tmp_path / "my-model")
    talks = [(f"Which number comes after {i}?", str(i + 1)) for i in range(48)]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in talks]
    (tmp_path / "conversations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "spinflow").write_text(SPINFLOW.format(python=sys.executable))
    (tmp_path / "bin" / "spinflow").chmod(0o755)
    path = os.pathsep.join((str(tmp_path / "bin"), os.environ["PATH"]))
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "SPINFLOW_HOME": str(tmp_path / "home")}

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=1800)

    watched: list[subprocess.CompletedProcess[str]] = []
    ended = threading.Event()

    def beside() -> None:
        while not ended.wait(5.0):
            watched.append(run("spinflow gc --delete"))
        watched.append(run("spinflow status mine.yaml --watch"))

    said = {}
    for command in COMMANDS:
        thread = threading.Thread(target=beside)
        if command.startswith("spinflow run"):
            thread.start()
        done = run(command)
        if thread.is_alive():
            ended.set()
            thread.join()
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        said[command] = done.stdout
    assert said["spinflow check mine.yaml"].splitlines()[-1] == "ready"
    assert "θ_0" in next(text for command, text in said.items() if "spinflow chat" in command)
    assert {done.returncode for done in watched} == {0}, watched[-1].stderr
    assert len(watched) > 1  # and the run came to its end all the same
    assert (tmp_path / "better-model" / "README.md").is_file()
    code = "from transformers import AutoModelForCausalLM as A; print(A.from_pretrained('better-model').num_parameters())"
    assert run(f'{sys.executable} -c "{code}"').returncode == 0
