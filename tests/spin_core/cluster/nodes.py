"""A Ray cluster of several nodes on this machine, whose GPUs exist for its scheduler only: torch sees none and computes on the CPU."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.chaos.campaign import command_line

ROOT = Path(__file__).parents[3]
_MARK = "SPINFLOW_TEST_NODES"


class Nodes:
    """A head without GPUs and `count` nodes with one each."""

    def __init__(self, count: int, mark: str) -> None:
        from ray.cluster_utils import Cluster

        self._mark = mark
        self._head = {"num_cpus": 1, "num_gpus": 0, "include_dashboard": False}
        self._ray = Cluster(initialize_head=True, head_node_args=self._head)
        self.address = str(self._ray.address)  # HOST:PORT of its head
        self.nodes: list[Any] = [self.add() for _ in range(count)]

    def add(self) -> Any:
        """One more node."""
        return self._ray.add_node(num_cpus=1, num_gpus=1)

    def kill_head(self) -> None:
        self._ray.remove_node(self._ray.head_node, allow_graceful=False)

    def restart_head(self) -> None:
        """As when its machine starts again, at the same address: the new one knows of nothing. Its nodes end by themselves."""
        port = int(self.address.rpartition(":")[2])
        self.kill_head()
        self._ray.add_node(**self._head, gcs_server_port=port)
        for node in self.nodes:
            wait_until(lambda node=node: node.all_processes["raylet"][0].process.poll() is not None, 90)
            self.kill_node(node)

    def replace(self) -> None:
        """A new node for each that was killed."""
        self.nodes = [node if node in self._ray.worker_nodes else self.add() for node in self.nodes]

    def kill(self, pid: int) -> None:
        """The node that a process runs on, as when its machine loses power: SIGKILL for its raylet, and nothing is told to anybody."""
        self.kill_node(self.of(pid))

    def of(self, pid: int) -> Any:
        """The node that a process runs on."""
        return next(node for node in self.nodes if _raylet(node) in ancestors(pid))

    def kill_node(self, node: Any) -> None:
        self._ray.remove_node(node, allow_graceful=False)

    def pids(self, *words: str) -> list[int]:
        """Processes that came out of these nodes, or of a flow that this test started, whose command line has all the words."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and f"{_MARK}={self._mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return [pid for pid in found if all(word in command_line(pid) for word in words)]

    def shutdown(self) -> None:
        """Ends all."""
        self._ray.shutdown()


def ancestors(pid: int) -> list[int]:
    """Parent, its parent, and so on."""
    found: list[int] = []
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            break
        found.append(pid)
    return found


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


@contextmanager
def cluster_of(count: int) -> Iterator[Nodes]:
    """Skips where Ray is not installed."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray._private import services

    get_node = services.get_node

    def patient(*args: Any) -> Any:
        """On a busy machine a node takes longer to come up than the half minute that Ray gives it."""
        deadline = time.monotonic() + 120
        while True:
            try:
                return get_node(*args)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "get_node", patient)
        mark = uuid4().hex
        patch.setenv(_MARK, mark)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", paths(ROOT, os.environ.get("PYTHONPATH")))
        nodes = Nodes(count, mark)
        try:
            yield nodes
        finally:
            nodes.shutdown()


def paths(*found: Path | str | None) -> str:
    """A PYTHONPATH of what is there."""
    return os.pathsep.join(str(one) for one in found if one)


def joins(home: Path, address: str, then: str) -> list[str]:
    """A command whose process joins a cluster as a run does, as `found`, and goes on with `then`."""
    code = "import sys, time; from pathlib import Path; from spin_core.cluster.join import joined; from spin_core.store import Store\n"
    code += f"with joined(Store(Path(sys.argv[1])), sys.argv[2]) as found: {then}"
    return [sys.executable, "-c", code, str(home), address]


def wait_until(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `what` gives, once it gives something."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)
    return found
