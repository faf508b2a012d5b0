"""How sampling scales over a cluster: engines that answer at 1,000 tokens/s each, on 1, 8 and more GPUs that only Ray's scheduler knows.

    python -m bench.scale_out [--gpus 1 8] [--seconds 60]

Rows are as many as should take so long, 100 tokens each. Shards, pool, store and Ray are the real ones; the engines only wait. What is
lost against perfect scaling is what handing out and taking back costs, all of it in one process, here on the same cores as the engines.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bench.commit import commit
from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Answer, OnAnswer, Prompt, Sampler

_TOKENS, _RATE = 100, 1000.0  # of an answer; a second of an engine
_SHARD_ROWS, _SHARDS_IN_FLIGHT = 16, 256
_MARK = "@result "


class Paced:
    """Answers shards in the order in which they come, at its rate."""

    address, node, where = None, "", ""
    window = 4 * _SHARD_ROWS

    def __init__(self, sampler: Sampler, log: Path, part: int, parts: int) -> None:
        self._lock, self._free = threading.Lock(), 0.0  # when all that came before is answered

    def alive(self) -> bool:
        return True

    def sample(self, prompts: Sequence[Prompt], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        with self._lock:
            self._free = done = max(self._free, time.monotonic()) + len(prompts) * _TOKENS / _RATE
        time.sleep(max(0.0, done - time.monotonic()))
        for number, _ in enumerate(prompts, 1):
            on_answer(number, _TOKENS)
        return [Answer([2] * _TOKENS, "stop", "")] * len(prompts)

    def close(self) -> None:
        pass


def child(home: Path, gpus: int, seconds: float) -> dict[str, Any]:
    """One stage of shards on a cluster of one node with so many GPUs."""
    from ray.cluster_utils import Cluster

    from spin_core.cluster.join import joined
    from spin_core.generation.pool import EnginePool
    from spin_core.generation.stage import shards
    from spin_core.recipe import Recipe
    from spin_core.runtime.launcher import Launcher
    from spin_core.store import Store
    from tests.tiny import make_encoded

    rows = int(gpus * seconds * _RATE / _TOKENS)
    store = Store(home)
    generation = {"engine": "transformers", "shard_rows": _SHARD_ROWS, "max_new_tokens": _TOKENS}
    recipe = Recipe.model_validate({"name": "b", "model": {"name": "m"}, "data": {"name": "demo"}, "generation": generation})
    model, encoded = make_encoded(store, rows)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": gpus, "include_dashboard": False})
    try:
        with joined(store, cluster.address) as machine:
            assert machine is not None
            machine._make_engine = Paced
            with EnginePool(store, machine.starts) as pool, ThreadPoolExecutor(_SHARDS_IN_FLIGHT) as threads:
                plans, on = shards(recipe, model, encoded, "train", "bench"), Launcher(store, "b", pool, machine)
                with pool.lease(plans[0].sampler, 1):
                    while sum(seat.engine is not None for seat in pool._seats) < gpus:
                        time.sleep(0.1)
                before, started = time.process_time(), time.perf_counter()
                made = list(threads.map(on.build, plans))
                took = time.perf_counter() - started
            assert sum(ref.facts["rows"] for ref in made) == rows
    finally:
        cluster.shutdown()
    cpu, peak = time.process_time() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"gpus": gpus, "rows": rows, "seconds": took, "efficiency": seconds / took, "flow_cpu_seconds": cpu, "flow_peak_bytes": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(_MARK + json.dumps(child(options.child, options.gpus[0], options.seconds)), flush=True)
        return
    found = []
    for gpus in options.gpus:
        with tempfile.TemporaryDirectory(prefix="bench-scale-out-") as folder:
            command = [sys.executable, "-m", "bench.scale_out", "--gpus", str(gpus), "--seconds", str(options.seconds)]
            env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
            done = subprocess.run([*command, "--child", str(Path(folder) / "home")], stdout=subprocess.PIPE, text=True, check=True, env=env)
        line = next(line for line in done.stdout.splitlines() if line.startswith(_MARK))
        found.append(json.loads(line[len(_MARK) :]))
        one = found[-1]
        print(f"{gpus} GPUs: {one['rows']:,} rows in {one['seconds']:.1f} s, {one['efficiency']:.0%} of perfect scaling")
    result = {
        "bench": "scale_out",
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("ray", "pyarrow")},
        "commit": commit(),
        "load_before": os.getloadavg()[0],
        "runs": [{key: round(value, 3) if isinstance(value, float) else value for key, value in one.items()} for one in found],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
