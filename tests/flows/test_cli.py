"""Mistakes at the terminal: one line that names the thing and the remedy, a non-zero status, no traceback, nothing written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

RECIPE = "name: t\nmodel: {name: /no/such/folder}\ndata: {name: demo}\n"


def spinflow(tmp_path: Path, *arguments: str, recipe: str = RECIPE) -> subprocess.CompletedProcess[str]:
    (tmp_path / "t.yaml").write_text(recipe)
    command = [sys.executable, "-m", "flows.cli", *arguments, "--home", str(tmp_path / "home")]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("training.betta=1", "training.betta"),
        ("training.beta=-1", "training.beta"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, change: str, says: str) -> None:
    done = spinflow(tmp_path, "check", "t.yaml", "--set", change)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "home" / "artifacts").exists()


def test_check_lists_what_to_mend(tmp_path: Path) -> None:
    done = spinflow(tmp_path, "check", "t.yaml", "--set", "model.name=./nowhere", "--set", "data.name=./none.jsonl")
    assert done.returncode == 2
    assert "1. data.name: ./none.jsonl does not exist" in done.stdout or "2. data.name: ./none.jsonl does not exist" in done.stdout
    assert "model.name: the folder ./nowhere does not exist" in done.stdout
    assert not (tmp_path / "home" / "artifacts").exists()


def test_a_missing_recipe(tmp_path: Path) -> None:
    done = spinflow(tmp_path, "run", "none.yaml")
    assert (done.returncode, done.stderr) == (2, "error: recipe none.yaml does not exist; see recipes/ for examples\n")


def test_bad_data_through_the_flow(tmp_path: Path) -> None:
    """Through Prefect, too, a bad row is one line: no retry, no traceback."""
    rows = [{"prompt": "q", "response": "a"}, {"prompt": "q"}, {"prompt": "r", "response": "b"}]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = spinflow(tmp_path, "run", "t.yaml", "--set", f"data.name={tmp_path / 'data.jsonl'}", "--set", "data.test_size=1")
    assert done.returncode == 2, done.stderr
    assert "row 2: no answer" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "Flow run" in (tmp_path / "home" / "logs" / "latest" / "flow.log").read_text()


def test_status_before_the_first_run(tmp_path: Path) -> None:
    done = spinflow(tmp_path, "status", "t.yaml")
    assert done.returncode == 0
    assert "no iteration is finished yet" in done.stdout
    assert "what would run cannot be said: model.name: the folder /no/such/folder does not exist" in done.stdout


def test_json_logs_are_json_throughout(tmp_path: Path) -> None:
    """One line that is not JSON breaks whoever collects the logs."""
    (tmp_path / "data.jsonl").write_text('{"prompt": "q"}\n')
    done = spinflow(tmp_path, "run", "t.yaml", "--set", f"data.name={tmp_path / 'data.jsonl'}", "--log-format", "json")
    assert done.returncode == 2, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert any(line["severity"] == "ERROR" and "row 1: no answer" in line["message"] for line in lines)
    assert done.stdout == ""


def test_a_server_that_is_gone_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a reboot the settings of `make up` are still there; Prefect's client would try for minutes, then show a traceback."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    done = spinflow(tmp_path, "run", "t.yaml")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the Prefect server at http://127.0.0.1:9/api does not answer; start it with `make up`")
    assert done.stderr.count("\n") == 1
