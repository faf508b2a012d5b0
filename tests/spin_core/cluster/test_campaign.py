"""A whole campaign on three nodes: one is killed while it samples, scores, trains, and writes what it trained; the head is started anew."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign, command_line
from tests.spin_core.cluster.nodes import Nodes, cluster_of, wait_until

DEADLINE_S = 1500.0


class OnNodes(Campaign):
    """Its flow is a process as ever, its children are the nodes'."""

    def __init__(self, folder: Path, model: Path, nodes: Nodes) -> None:
        super().__init__(folder, model, "transformers", rows=24, iterations=2, say=print)
        recipe = folder / "tiny.yaml"  # these GPUs would have bf16, which is slow on the CPU that does the work
        recipe.write_text(recipe.read_text().replace("save_steps: 1", "save_steps: 1, precision: fp32"))
        self.environment = {**os.environ, "SPINFLOW_CLUSTER": nodes.address}
        self._nodes = nodes

    def pids(self, *words: str) -> list[int]:
        return self._nodes.pids(*words)

    def left(self) -> list[int]:
        """The nodes' own processes stay."""
        return [pid for pid in self._nodes.pids() if "-m spin_core." in command_line(pid) or "ray::Host" in command_line(pid)]


def working(campaign: Campaign, module: str) -> list[int]:
    """The children that do the work, without what launches them."""
    return [pid for pid in campaign.pids(f"-m spin_core.{module}") if "accelerate" not in command_line(pid)]


@pytest.mark.long
def test_a_head_that_is_started_anew(tmp_path: Path, tiny_model: Path) -> None:
    """If it fails, a run on a cluster that knows nothing of it hangs, or ends in Ray's stack trace, or what it did is lost."""
    with cluster_of(3) as nodes:
        campaign = OnNodes(tmp_path, tiny_model, nodes)
        campaign.start()
        wait_until(
            lambda: [*campaign.home.glob("artifacts/shard/*/MANIFEST.json")] and working(campaign, "generation.transformers_engine"), 300
        )
        campaign.watch()
        done = len(campaign.done)
        nodes.restart_head()
        assert campaign.end(90.0, 90.0) == 1
        assert [line for line in campaign.output().splitlines() if "rror" in line] == [
            f"error: the cluster's head at {nodes.address} was started anew; start the head and the nodes, and run again to continue"
        ]
        nodes.replace()
        campaign.start()
        assert campaign.end(DEADLINE_S) == 0, campaign.output()
        campaign.check()
        assert len(campaign.done) > done > 0


@pytest.mark.long
def test_a_head_that_stays_away(tmp_path: Path) -> None:
    """If it fails, what is read of it is Ray's: "The program will terminate"."""
    code = "import sys, time; from pathlib import Path; from spin_core.cluster.join import joined; from spin_core.store import Store\n"
    code += "with joined(Store(Path(sys.argv[1])), sys.argv[2]): print('joined', flush=True); time.sleep(600)"
    with cluster_of(1) as nodes:
        command = [sys.executable, "-c", code, str(tmp_path), nodes.address]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert run.stdout is not None
        assert run.stdout.readline() == "joined\n"
        nodes.kill_head()
        _, told = run.communicate(timeout=90)
        assert run.returncode == 1
        why = f"the cluster's head at {nodes.address} has not answered for 40 s"
        assert told.splitlines() == [f"error: {why}; start the head and the nodes, and run again to continue"]


@pytest.mark.long
def test_a_campaign_that_loses_nodes(tmp_path: Path, tiny_model: Path) -> None:
    """If it fails, a machine that goes costs more than what it had in hand."""
    with cluster_of(3) as nodes:
        campaign = OnNodes(tmp_path, tiny_model, nodes)
        kills = [("generation.transformers_engine", ""), ("scoring.job", "")]
        kills += [("training.job", "work/*/ddp/checkpoint-*"), ("training.job", ".staging/model-*/*.safetensors")]  # the last: at commit
        deadline = time.monotonic() + DEADLINE_S
        campaign.start()
        while campaign.running():
            assert time.monotonic() < deadline, f"the run hangs:\n{campaign.output()}"
            if kills and (not kills[0][1] or [*campaign.home.glob(kills[0][1])]) and (found := working(campaign, kills[0][0])):
                nodes.kill(found[-1])
                print(f"killed the node of {kills.pop(0)}")
                nodes.replace()
            time.sleep(0.005)
        assert campaign.end() == 0, campaign.output()
        assert not kills, f"never came to happen: {kills}"
        campaign.check()
        assert campaign.output().count(" was lost") == 0, "a retry is nothing to tell at the terminal"
