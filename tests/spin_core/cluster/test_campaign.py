"""A whole campaign on three nodes, of which one is killed while it samples, one while it scores and one while it trains."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.chaos.campaign import Campaign, command_line
from tests.spin_core.cluster.nodes import Nodes, three_nodes

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


@pytest.mark.long
def test_a_campaign_that_loses_nodes(tmp_path: Path, tiny_model: Path) -> None:
    """If it fails, a machine that goes costs more than what it had in hand."""
    with three_nodes() as nodes:
        campaign = OnNodes(tmp_path, tiny_model, nodes)
        kills = ["generation.transformers_engine", "scoring.job", "training.job"]
        deadline = time.monotonic() + DEADLINE_S
        campaign.start()
        while campaign.running():
            assert time.monotonic() < deadline, f"the run hangs:\n{campaign.output()}"
            found = [pid for pid in campaign.pids(f"-m spin_core.{kills[0]}") if "accelerate" not in command_line(pid)] if kills else []
            if found and (kills[0] != "training.job" or [*campaign.home.glob("work/*/ddp/checkpoint-*")]):
                print(f"kills the node of {kills.pop(0)}")
                nodes.kill(found[-1])
                nodes.replace()
            time.sleep(0.05)
        assert campaign.end() == 0, campaign.output()
        assert not kills, f"never came to happen: {kills}"
        campaign.check()
        assert campaign.output().count(" was lost") == 0, "a retry is nothing to tell at the terminal"
