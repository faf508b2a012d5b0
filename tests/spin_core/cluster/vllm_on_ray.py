"""The real vLLM over several nodes without GPUs, and a stage for it; as a program, that stage on a cluster whose hosts share no disk."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from spin_core.cluster.join import joined
from spin_core.cluster.wide import WideServer
from spin_core.generation.engine import Sampler
from spin_core.generation.pool import EnginePool
from spin_core.generation.stage import Shard, shards
from spin_core.recipe import Recipe
from spin_core.runtime.devices import Device
from spin_core.runtime.launcher import Launcher
from spin_core.store import Spec, Store
from tests.spin_core.cluster.nodes import paths
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


def environment(folder: Path) -> dict[str, str]:
    """Of nodes whose vLLM has the platform above, a plugin in `folder`, which only its Ray executor asks for."""
    plugin = folder / "plugin"
    (plugin / "vllm_cpu_on_ray-0.dist-info").mkdir(parents=True)
    (plugin / "vllm_cpu_on_ray.py").write_text(PLATFORM)
    (plugin / "vllm_cpu_on_ray-0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm-cpu-on-ray\nVersion: 0\n")
    points = "[vllm.platform_plugins]\nvllm_cpu_on_ray = vllm_cpu_on_ray:name\n"
    (plugin / "vllm_cpu_on_ray-0.dist-info" / "entry_points.txt").write_text(points)
    return {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "PYTHONPATH": paths(plugin, os.environ.get("PYTHONPATH"))}


def plans_of(store: Store, model: Path, **generation: Any) -> list[Shard]:
    """A stage of eight shards."""
    content = {"name": "n", "model": {"name": "m"}, "data": {"name": "demo", "max_prompt_tokens": 32}}
    generation |= {"engine": "vllm", "shard_rows": SHARD, "max_new_tokens": 16}
    recipe = Recipe.model_validate(content | {"generation": generation})
    player = store.build(Spec("model", 1, {}), lambda out: void(shutil.copytree(model, out, dirs_exist_ok=True)))
    _, encoded = make_encoded(store, ROWS)
    return shards(recipe, player, encoded, "train", "iter-0")


def wide_plans(store: Store, model: Path) -> list[Shard]:
    """The same for an engine over two nodes, that fits two on one machine."""
    arguments = {"enforce_eager": True, "max_num_seqs": 8, "max_num_batched_tokens": 256, "kv_cache_memory_bytes": 2**27}
    return plans_of(store, model, tensor_parallel=2, gpu_memory=0.1, engine_args=arguments)


def void(_: Any) -> None:
    return None


def over_two(group: Any, sampler: Sampler, log: Path, part: int, parts: int) -> WideServer:
    """In place of `wide_engine`, which refuses the CPU's build."""
    return WideServer(group, sampler, log, [Device("0", "0")] * 2, part, parts)


def main(home: str, model: str, cluster: str) -> None:
    """One shard by an engine over two hosts."""
    store = Store(home)
    plans = wide_plans(store, Path(model))
    with joined(store, cluster) as machine:
        assert machine is not None
        machine._make_wide = over_two
        with EnginePool(store, machine.starts) as pool:
            assert Launcher(store, "n", pool, machine).build(plans[0]).facts["rows"] == SHARD


if __name__ == "__main__":
    main(*sys.argv[1:])
