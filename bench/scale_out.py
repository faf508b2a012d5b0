"""How sampling scales over a cluster: engines that answer at 1,000 tokens/s each, on 1, 8 and 64 GPUs that only Ray's scheduler knows.

    python -m bench.scale_out                                          # 100,000 rows at 64; about ten minutes
    python -m bench.scale_out --gpus 64 --shard-rows 64 --rate 10000   # the default shards, engines as fast as a large card

100 tokens a row, 16 rows a shard: small ones, so that there are many. Shards, pool, store, Ray and the run's progress file are the
real ones; the engines only wait, and tell each answer when it is due. Prefect's part is measured by `bench.orchestration`.

What limits: each shard costs the flow's one process some milliseconds of CPU, whatever its rows, and each answer some microseconds, so
`flow_cpu_ms_a_shard` says how many shards/s there can be, and rows a shard how many rows/s. Flow, Ray and all engines share this
machine's cores here; of the engines' processes, `hosts_idle_cpu` is what Ray's own take while they have nothing to do (cores).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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
from spin_core.runtime.process import descendants, peak_rss

_TOKENS = 100  # of an answer
_RATE = "BENCH_RATE"  # tokens/s of an engine
_SHARDS_IN_FLIGHT = 256
_IDLE_S = 5.0
_MARK = "@result "


class Paced:
    """Answers shards in the order in which they come, at its rate."""

    address, node, where = None, "", ""

    def __init__(self, sampler: Sampler, log: Path, part: int, parts: int) -> None:
        self.window = 4 * sampler.settings.shard_rows
        self._row_s = _TOKENS / float(os.environ[_RATE])
        self._lock, self._free = threading.Lock(), 0.0  # when all that came before is answered

    def alive(self) -> bool:
        return True

    def sample(self, prompts: Sequence[Prompt], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        with self._lock:
            begins = max(self._free, time.monotonic())
            self._free = begins + len(prompts) * self._row_s
        for number, _ in enumerate(prompts, 1):
            time.sleep(max(0.0, begins + number * self._row_s - time.monotonic()))
            on_answer(number, _TOKENS)
        return [Answer([2] * _TOKENS, "stop", "")] * len(prompts)

    def close(self) -> None:
        pass


class Usage:
    """CPU seconds of this process and of all that came out of it, by what they are, since the creation."""

    def __init__(self) -> None:
        self._before, self._machine_before, self._since = _cpu_by_pid(), _busy_s(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """`flow`, `scheduler` (Ray's own daemons), `hosts` (the engines' processes); `others` are the machine's other processes."""
        found = dict.fromkeys(("flow", "scheduler", "hosts", "others"), 0.0)
        for pid, (what, seconds) in _cpu_by_pid().items():
            found[what] += seconds - self._before.get(pid, ("", 0.0))[1]
        found["others"] = max(0.0, _busy_s() - self._machine_before - sum(found.values()))
        return found


def _cpu_by_pid() -> dict[int, tuple[str, float]]:
    found, ticks = {}, os.sysconf("SC_CLK_TCK")
    for pid in (os.getpid(), *descendants(os.getpid())):
        try:
            head, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        except OSError:
            continue
        what = "flow" if pid == os.getpid() else "hosts" if "ray::Host" in head else "scheduler"
        found[pid] = what, sum(map(int, rest.split()[11:13])) / ticks
    return found


def _busy_s() -> float:
    user, nice, system, _, _, interrupt, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")


def child(home: Path, gpus: int, rows: int, shard_rows: int, rate: float) -> dict[str, Any]:
    """One stage of shards on a cluster of one node with so many GPUs."""
    from ray.cluster_utils import Cluster

    from spin_core.cluster.join import joined
    from spin_core.generation.pool import EnginePool
    from spin_core.generation.stage import shards
    from spin_core.recipe import Recipe
    from spin_core.runtime.board import Board
    from spin_core.runtime.launcher import Launcher
    from spin_core.runtime.progress import listen
    from spin_core.store import Store
    from tests.tiny import make_encoded

    os.environ[_RATE] = str(rate)
    store = Store(home)
    generation = {"engine": "transformers", "shard_rows": shard_rows, "max_new_tokens": _TOKENS}
    recipe = Recipe.model_validate({"name": "b", "model": {"name": "m"}, "data": {"name": "demo"}, "generation": generation})
    model, encoded = make_encoded(store, rows)
    listen(Board(home).note)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": gpus, "memory": 2**40, "include_dashboard": False})
    try:
        with joined(store, cluster.address) as machine:
            assert machine is not None
            machine._make_engine = Paced
            with EnginePool(store, machine.starts) as pool, ThreadPoolExecutor(_SHARDS_IN_FLIGHT) as threads:
                plans, on = shards(recipe, model, encoded, "train", "bench"), Launcher(store, "b", pool, machine)
                with pool.lease(plans[0].sampler, 1):
                    while sum(seat.engine is not None for seat in pool._seats) < gpus:
                        time.sleep(0.1)
                usage = Usage()
                time.sleep(_IDLE_S)
                idle, usage, started = usage.read()["hosts"] / _IDLE_S, Usage(), time.perf_counter()
                made = list(threads.map(on.build, plans))
                took, cpu = time.perf_counter() - started, usage.read()
            assert sum(ref.facts["rows"] for ref in made) == rows
    finally:
        cluster.shutdown()
    found = {"gpus": gpus, "rows": rows, "shards": len(plans), "shard_rows": shard_rows, "tokens_per_s_a_gpu": rate, "seconds": took}
    found |= {"efficiency": rows * _TOKENS / rate / gpus / took, "rows_per_s": rows / took, "hosts_idle_cpu": idle}
    found |= {f"{name}_cpu_seconds": seconds for name, seconds in cpu.items()}
    found |= {"flow_cpu_ms_a_shard": 1000 * cpu["flow"] / len(plans), "flow_peak_bytes": peak_rss()}
    return found | {"million_rows_s": 1e6 / rows * took, "million_rows_flow_cpu_s": 1e6 / rows * cpu["flow"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rows-a-gpu", type=int, default=1563)
    parser.add_argument("--shard-rows", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1000.0, help="tokens/s of an engine")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        gpus = options.gpus[0]
        found = child(options.child, gpus, gpus * options.rows_a_gpu, options.shard_rows, options.rate)
        print(_MARK + json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}), flush=True)
        return
    runs = []
    for gpus in options.gpus:
        words = {"gpus": gpus, "rows-a-gpu": options.rows_a_gpu, "shard-rows": options.shard_rows, "rate": options.rate}
        with tempfile.TemporaryDirectory(prefix="bench-scale-out-") as folder:
            command = [sys.executable, "-m", "bench.scale_out", "--child", str(Path(folder) / "home")]
            command += [word for name, value in words.items() for word in (f"--{name}", str(value))]
            env = os.environ | {"RAY_USAGE_STATS_ENABLED": "0"}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
        line = next(line for line in done.stdout.splitlines() if line.startswith(_MARK))
        runs.append(one := json.loads(line[len(_MARK) :]))
        print(f"{gpus} GPUs: {one['rows']:,} rows in {one['seconds']:.1f} s, {one['efficiency']:.1%} of perfect scaling", flush=True)
    result = {
        "bench": "scale_out",
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("ray", "pyarrow")},
        "commit": commit(),
        "load_before": os.getloadavg()[0],
        "runs": runs,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
