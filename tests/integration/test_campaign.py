"""The whole path with the real vLLM server and real Prefect, on a tiny model: a turn of self-play, a killed engine, a killed run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from spin_core.contracts.rows import TRAIN_FILE
from spin_core.contracts.tables import read_rows
from spin_core.runtime.process import descendants

ROOT = Path(__file__).parents[2]
RECIPE = """
name: tiny
model: {{name: {model}}}
data: {{name: demo, subset: 40, test_size: 8, max_prompt_tokens: 256}}
generation: {{max_new_tokens: 24, shard_rows: 8}}
training: {{epochs: 1, pairs_per_step: 8, learning_rate: 1.0e-3}}
iterations: [{{}}, {{}}]
"""


def start(folder: Path, command: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "flows.cli", command, "tiny.yaml", "--home", str(folder / "home")]
    with (folder / "out.log").open("a") as log:
        return subprocess.Popen(arguments, cwd=folder, stdout=log, stderr=log, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def wait_for(what: Any, process: subprocess.Popen[str], timeout_s: float = 300.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        assert process.poll() is None, "the run ended before it was due"
        time.sleep(0.1)
    raise AssertionError("timed out")


def is_engine(pid: int) -> bool:
    try:
        return "vllm.entrypoints" in Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def manifests(home: Path) -> dict[str, float]:
    return {str(p.parent): p.stat().st_mtime for p in (home / "artifacts").rglob("MANIFEST.json")}


@pytest.mark.engine
def test_a_campaign_survives_what_happens_to_it(tmp_path: Path, tiny_model: Path) -> None:
    """Engine killed, run killed, run again: every row is there once and nothing finished is done twice."""
    (tmp_path / "tiny.yaml").write_text(RECIPE.format(model=tiny_model))
    home = tmp_path / "home"

    run = start(tmp_path, "iterate")
    wait_for(lambda: "starting vLLM: done" in (tmp_path / "out.log").read_text(), run)  # the first requests are on their way
    engine = wait_for(lambda: next((p for p in descendants(run.pid) if is_engine(p)), None), run)
    os.kill(engine, signal.SIGKILL)  # the shards that wait for it are retried with a new engine
    wait_for(lambda: list((home / "artifacts").glob("pairs/*/MANIFEST.json")), run)
    tree = descendants(run.pid)
    run.kill()
    run.wait()
    before = manifests(home)
    time.sleep(2)
    assert [pid for pid in tree if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_text()] == []

    assert start(tmp_path, "iterate").wait(900) == 0, (tmp_path / "out.log").read_text()
    assert before.items() <= manifests(home).items(), "something finished was done again"
    check_pairs(home)
    check_model(home)

    after = manifests(home)
    rerun = subprocess.run(
        [sys.executable, "-m", "flows.cli", "iterate", "tiny.yaml", "--home", str(home), "--set", "iterations=[{}]"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert rerun.returncode == 0, rerun.stderr
    assert manifests(home) == after, "a second run of a finished campaign did work"
    assert "best model:" in rerun.stdout


def check_pairs(home: Path) -> None:
    """Rows once; the trainer's ids are the engine's; EOS only where the answer ended."""
    folder = home / "campaigns" / "tiny" / "iter-0"
    pairs = read_rows(folder / "pairs" / TRAIN_FILE)
    shards = {r["row_id"]: r for p in folder.glob("train-shard-*") for r in read_rows(p / "shard.parquet")}
    assert len(pairs) == len({r["row_id"] for r in pairs}) == len(shards) == 32
    for row in pairs:
        assert row["generated_ids"] == shards[row["row_id"]]["generated_ids"]
        assert row["prompt_ids"] == shards[row["row_id"]]["prompt_ids"]
        assert (row["generated_ids"][-1] == 2) == (row["finish_reason"] == "stop")
        assert 2 not in row["generated_ids"][:-1]


def check_model(home: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = home / "campaigns" / "tiny" / "iter-0"
    assert AutoModelForCausalLM.from_pretrained(folder / "model").num_parameters() > 0
    first = json.loads((folder / "model" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert json.loads((folder / "evaluation" / "metrics.json").read_text())["splits"]["test"]["after"]["nll"]["prompts"] == 8
