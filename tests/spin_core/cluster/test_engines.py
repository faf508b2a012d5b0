"""The real vLLM on the nodes of a cluster: an engine on each of two, and one engine over two."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from spin_core.cluster.engines import RayEngine
from spin_core.cluster.join import joined
from spin_core.cluster.wide import WideServer
from spin_core.contracts.tables import read_rows
from spin_core.generation import vllm_server
from spin_core.generation.engine import Sampler
from spin_core.generation.pool import EnginePool
from spin_core.generation.stage import Shard, shards
from spin_core.recipe import Recipe
from spin_core.runtime.devices import Device
from spin_core.runtime.launcher import Launcher
from spin_core.store import Spec, Store
from tests.chaos.campaign import command_line
from tests.spin_core.cluster.nodes import Nodes, cluster_of, wait_until
from tests.tiny import make_encoded

ROWS, SHARD = 48, 6
# vLLM's own classes, but for the word by which Ray would know the devices of a CPU: then its Ray executor works there, too
PLATFORM = """
from vllm.platforms.cpu import CpuPlatform


class OnRay(CpuPlatform):
    ray_device_key = "GPU"


def name():
    return "vllm_cpu_on_ray.OnRay"
"""
pytestmark = [
    pytest.mark.long,
    pytest.mark.engine,
    pytest.mark.skipif(vllm_server.installed() != "vllm-cpu", reason="vLLM's CPU build is not installed"),
]


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    """Two, whose vLLM has the platform above, which only its Ray executor asks for."""
    plugin = tmp_path / "plugin"
    (plugin / "vllm_cpu_on_ray-0.dist-info").mkdir(parents=True)
    (plugin / "vllm_cpu_on_ray.py").write_text(PLATFORM)
    (plugin / "vllm_cpu_on_ray-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu-on-ray\nVersion: 0\n")
    points = "[vllm.platform_plugins]\nvllm_cpu_on_ray = vllm_cpu_on_ray:name\n"
    (plugin / "vllm_cpu_on_ray-0.dist-info" / "entry_points.txt").write_text(points)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(plugin), os.environ.get("PYTHONPATH", "")))))
    with cluster_of(2) as found:
        yield found


def plans_of(store: Store, model: Path, **generation: Any) -> list[Shard]:
    """A stage of eight shards."""
    content = {"name": "n", "model": {"name": "m"}, "data": {"name": "demo", "max_prompt_tokens": 32}}
    generation |= {"engine": "vllm", "shard_rows": SHARD, "max_new_tokens": 16}
    recipe = Recipe.model_validate(content | {"generation": generation})
    player = store.build(Spec("model", 1, {}), lambda out: void(shutil.copytree(model, out, dirs_exist_ok=True)))
    _, encoded = make_encoded(store, ROWS)
    return shards(recipe, player, encoded, "train", "iter-0")


def void(_: Any) -> None:
    return None


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


def over_two(group: Any, sampler: Sampler, log: Path, part: int, parts: int) -> WideServer:
    return WideServer(group, sampler, log, [Device("0", "0")] * 2, part, parts)


def test_an_engine_over_two_nodes(nodes: Nodes, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a model that no node can hold is not sampled from. Its worker on the second node is killed with it."""
    store = Store(tmp_path / "home")
    arguments = {"enforce_eager": True, "max_num_seqs": 8, "max_num_batched_tokens": 256, "kv_cache_memory_bytes": 2**27}
    plans = plans_of(store, tiny_model, tensor_parallel=2, gpu_memory=0.1, engine_args=arguments)
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
