"""A whole campaign on three nodes: one is killed while it samples, scores, trains, and writes what it trained; the head is started anew."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest

from tests.chaos.campaign import Campaign, command_line
from tests.s3 import s3
from tests.spin_core.cluster.nodes import ROOT, Nodes, cluster_of, joins, wait_until
from tests.spin_core.store.remote.campaign import InBucket

DEADLINE_S = 1500.0


class OnNodes(Campaign):
    """Its flow is a process as ever, its children are the nodes'."""

    nodes: Nodes

    def play_on(self, nodes: Nodes) -> None:
        """From the next run on."""
        recipe = self.folder / "tiny.yaml"  # these GPUs would have bf16, which is slow on the CPU that does the work
        recipe.write_text(recipe.read_text().replace("save_steps: 1", "save_steps: 1, precision: fp32"))
        self.environment = {**self.environment, "SPINFLOW_CLUSTER": nodes.address}
        self.nodes = nodes

    def pids(self, *words: str) -> list[int]:
        return self.nodes.pids(*words)

    def left(self) -> list[int]:
        """The nodes' own processes stay."""
        return [pid for pid in self.nodes.pids() if "-m spin_core." in command_line(pid) or "ray::Host" in command_line(pid)]


class OnNodesInBucket(OnNodes, InBucket):
    """The same, with its home in an object store."""


def working(campaign: Campaign, module: str) -> list[int]:
    """The children that do the work, without what launches them."""
    return [pid for pid in campaign.pids(f"-m spin_core.{module}") if "accelerate" not in command_line(pid)]


@pytest.mark.long
def test_a_head_that_is_started_anew(tmp_path: Path, tiny_model: Path) -> None:
    """If it fails, a run on a cluster that knows nothing of it hangs, or ends in Ray's stack trace, or what it did is lost."""
    with cluster_of(3) as nodes:
        campaign = OnNodes(tmp_path, tiny_model, "transformers", rows=24, iterations=2, say=print)
        campaign.play_on(nodes)
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


def joining(home: Path, address: str, **environment: str) -> subprocess.Popen[str]:
    """A process that joins, says so, and stays."""
    command, env = joins(home, address, "print('joined', flush=True); time.sleep(600)"), {**os.environ, **environment}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


@contextmanager
def cluster_with_token(token: dict[str, str]) -> Iterator[str]:
    """In a process of its own, since Ray reads whether there is one once a process."""
    code = "from tests.spin_core.cluster.nodes import cluster_of\nwith cluster_of(1) as nodes: print(nodes.address, flush=True); input()"
    env = {**os.environ, **token, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    assert child.stdout is not None
    yield child.stdout.readline().strip()
    child.communicate("\n")


@pytest.mark.long
def test_a_cluster_that_wants_a_token(tmp_path: Path) -> None:
    """If it fails, who has none reads twenty lines of Ray's own, and not what to do; or who has it is not let in."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid4().hex}
    with cluster_with_token(token) as address:
        without = joining(tmp_path, address, RAY_AUTH_MODE="disabled")
        _, told = without.communicate(timeout=90)
        assert without.returncode == 1
        assert [line for line in told.splitlines() if line.startswith("[")] == [], "lines of Ray's library"
        assert told.splitlines()[-1].startswith(
            f"spin_core.runtime.errors.SpinflowError: cluster: the one at {address} wants its token; set "
        )
        run = joining(tmp_path, address, **token)
        assert run.stdout is not None
        assert run.stdout.readline() == "joined\n"
        run.kill()
        run.communicate()


@pytest.mark.long
def test_a_head_that_stays_away(tmp_path: Path) -> None:
    """If it fails, what is read of it is Ray's: "The program will terminate"."""
    with cluster_of(1) as nodes:
        run = joining(tmp_path, nodes.address)
        assert run.stdout is not None
        assert run.stdout.readline() == "joined\n"
        nodes.kill_head()
        _, told = run.communicate(timeout=90)
        assert run.returncode == 1
        why = f"the cluster's head at {nodes.address} has not answered for 40 s"
        assert told.splitlines() == [f"error: {why}; start the head and the nodes, and run again to continue"]


class Losses:
    """Nodes that go, one after the other, and a store that fails: each thing once, in the middle of what it is about."""

    def __init__(self, campaign: OnNodesInBucket, cache: Path, faults: float) -> None:
        self._campaign, self._cache, self._faults, self._dice = campaign, cache, faults, random.Random(0)
        self.left = ["sampling", "scoring", "training", "commit"]
        self._committing = threading.Lock()

    def look(self) -> None:
        """Has the next one happen, if it is its time."""
        module = {"sampling": "generation.transformers_engine", "scoring": "scoring.job", "training": "training.job"}
        if not self.left or self.left[0] not in module or not (found := working(self._campaign, module[self.left[0]])):
            return
        if self.left[0] != "training" or [*self._cache.glob("*/nodes/*/*/*/ddp/checkpoint-*")]:
            self._kill(found[-1])

    def fault(self, method: str, name: str) -> str:
        """Of the store. The last node goes while it sends what it trained, which is when this is asked."""
        with self._committing:
            if self.left == ["commit"] and method == "PUT" and name.startswith("files/model/") and (sender := self._sender()):
                self._kill(sender)
                return "lost"
        return self._dice.choice(["500", "503", "lost", "lost answer", "stale"]) if self._dice.random() < self._faults else ""

    def _sender(self) -> int | None:
        """The host on whose disk a trained model is."""
        made = next(self._cache.glob("*/nodes/*/.staging/model-*/*.safetensors"), None)
        locks = {str(made.parents[2] / ".lock")} if made else set()
        return next((pid for pid in self._campaign.pids("ray::Host") if locks & opened(pid)), None)

    def _kill(self, pid: int) -> None:
        self._campaign.nodes.kill(pid)
        print(f"lost a node in {self.left.pop(0)}")


def opened(pid: int) -> set[str]:
    """The files that a process has open."""
    with suppress(OSError):
        return {str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()}
    return set()


@pytest.mark.long
def test_a_campaign_that_loses_nodes(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a machine that goes costs more than what it had in hand, or a store that fails meanwhile costs the campaign."""
    with s3() as server:
        campaign = OnNodesInBucket(tmp_path, tiny_model, server, rows=24, iterations=2)
        monkeypatch.setenv("SPINFLOW_CACHE", str(tmp_path / "a"))
        with cluster_of(3) as nodes:
            campaign.play_on(nodes)
            losses, deadline = Losses(campaign, tmp_path / "a", faults=0.05), time.monotonic() + DEADLINE_S
            campaign.start()
            server.fault = losses.fault
            while campaign.running():
                assert time.monotonic() < deadline, f"the run hangs:\n{campaign.output()}"
                losses.look()
                nodes.replace()
                time.sleep(0.01)
            server.fault = lambda method, name: ""
            assert campaign.end() == 0, campaign.output()
            assert not losses.left, f"never came to happen: {losses.left}"
            campaign.check()
            assert campaign.output().count(" was lost") == 0, "a retry is nothing to tell at the terminal"
            print(f"{sum(server.failed.values())} faults of the store: {dict(server.failed)}")
            assert sum(server.failed.values()) >= 20
