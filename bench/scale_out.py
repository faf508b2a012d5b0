"""How sampling scales over a cluster: engines that answer at a rate, on 1, 8 and 64 GPUs that only Ray's scheduler knows.

    python -m bench.scale_out                        # the runs of `_RUNS`, a quarter of an hour
    python -m bench.scale_out --run 64 1563 16 1000  # GPUs, rows a GPU, rows a shard, tokens/s of an engine; --prefect, --store

100 tokens a row. Shards, pool, store, Ray and the run's progress file are the real ones; the engines only wait, and tell each answer
when it is due. With `prefect` each shard is a task as well, with Prefect's own server on a fresh database. With `store` the home is in
an S3 server (moto's, in a process of its own on the same cores), which counts what it is asked.

What limits: a shard costs the flow's one process about as much CPU whatever its rows (`flow_cpu_ms_a_shard`; most of it is Prefect's
task), so a core hands out 28 to 42 shards/s as tasks; 16 rows a shard, where the default is 64, are there to have many. And the last
round: a GPU without a shard waits for those that have one, so a GPU should get 20 shards or more. Flow, servers and all engines share
this machine's cores here; `hosts_idle_cpu` is how many cores Ray's part of the engines' processes takes while these do nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from bench.facts import commit, facts
from flows.session import SHARDS_IN_FLIGHT, Session
from spin_core.campaign.ledger import Ledger
from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Answer, OnAnswer, Prompt, Sampler
from spin_core.generation.pool import EnginePool
from spin_core.generation.stage import Shard, shards
from spin_core.recipe import Recipe
from spin_core.runtime.launcher import Launcher
from spin_core.runtime.process import descendants, peak_rss
from spin_core.store import Ref, Store
from tests.s3 import apart

_TOKENS = 100  # of an answer
_RATE = "BENCH_RATE"  # tokens/s of an engine
_IDLE_S = 5.0
_MARK = "@result "
_PREFECT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
}


@dataclass(frozen=True)
class Run:
    """One measurement."""

    gpus: int
    rows_a_gpu: int
    shard_rows: int
    rate: float  # tokens/s of an engine
    prefect: bool = False  # whether shards are tasks of a flow, as in `spinflow run`, or the launcher's alone
    store: bool = False  # whether the home is in an object store

    @property
    def rows(self) -> int:
        """Of all GPUs."""
        return self.gpus * self.rows_a_gpu


_RUNS = (
    Run(1, 640, 16, 1000),
    Run(8, 640, 16, 1000),
    Run(64, 1563, 16, 1000),  # 100,000 rows
    Run(64, 1563, 64, 1000, prefect=True),  # the default shards
    Run(64, 1563, 64, 1000, prefect=True, store=True),
    Run(64, 15_625, 512, 10_000, prefect=True),  # a million rows on engines as fast as a large card's
)


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
        """`flow`, `server` (Prefect's), `scheduler` (Ray's daemons), `hosts` (the engines' processes); `others` are not this bench's."""
        found = dict.fromkeys(("flow", "server", "scheduler", "hosts", "others"), 0.0)
        for pid, (what, seconds) in _cpu_by_pid().items():
            found[what] += seconds - self._before.get(pid, ("", 0.0))[1]
        found["others"] = max(0.0, _busy_s() - self._machine_before - sum(found.values()))
        return found


def _cpu_by_pid() -> dict[int, tuple[str, float]]:
    found, ticks = {}, os.sysconf("SC_CLK_TCK")
    for pid in (os.getpid(), *descendants(os.getpid())):
        try:
            head, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
            words = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        what = "flow" if pid == os.getpid() else "hosts" if "ray::Host" in head else "server" if "prefect.server" in words else "scheduler"
        found[pid] = what, sum(map(int, rest.split()[11:13])) / ticks
    return found


def _busy_s() -> float:
    user, nice, system, _, _, interrupt, soft, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + interrupt + soft + steal) / os.sysconf("SC_CLK_TCK")


def child(home: str, run: Run) -> dict[str, Any]:
    """One stage of shards on a cluster of one node with so many GPUs."""
    from ray.cluster_utils import Cluster

    from spin_core.cluster.join import joined
    from spin_core.runtime.board import Board
    from spin_core.runtime.progress import listen
    from tests.tiny import make_encoded

    os.environ[_RATE] = str(run.rate)
    store = Store(home)
    generation = {"engine": "transformers", "shard_rows": run.shard_rows, "max_new_tokens": _TOKENS}
    recipe = Recipe.model_validate({"name": "b", "model": {"name": "m"}, "data": {"name": "demo"}, "generation": generation})
    model, encoded = make_encoded(store, run.rows)
    listen(Board(store.home).note)
    node = {"num_cpus": 1, "num_gpus": run.gpus, "memory": 2**40, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        with joined(store, cluster.address) as machine:
            assert machine is not None
            machine._make_engine = Paced
            with EnginePool(store, machine.starts) as pool:
                plans = shards(recipe, model, encoded, "train", "bench")
                with pool.lease(plans[0].sampler, 1):
                    while sum(seat.engine is not None for seat in pool._seats) < run.gpus:
                        time.sleep(0.1)
                usage = Usage()
                time.sleep(_IDLE_S)
                idle = usage.read()["hosts"] / _IDLE_S
                asked = _asked()
                made, took, cpu = (_by_a_flow if run.prefect else _by_threads)(recipe, Launcher(store, "b", pool, machine), plans)
                asked = _asked() - asked
            assert sum(ref.facts["rows"] for ref in made) == run.rows
    finally:
        cluster.shutdown()
    perfect = run.rows_a_gpu * _TOKENS / run.rate
    found = asdict(run) | {
        "rows": run.rows,
        "shards": len(plans),
        "seconds": took,
        "efficiency": perfect / took,
        "rows_per_s": run.rows / took,
    }
    found |= {f"{name}_cpu_seconds": seconds for name, seconds in cpu.items()}
    found |= {"store_requests_a_row": asked / run.rows} if run.store else {}
    found |= {"flow_cpu_ms_a_shard": 1000 * cpu["flow"] / len(plans), "flow_peak_bytes": peak_rss(), "hosts_idle_cpu": idle}
    return found | {"million_rows_seconds": 1e6 / run.rows * took, "million_rows_flow_cpu_seconds": 1e6 / run.rows * cpu["flow"]}


def _asked() -> int:
    """Requests that the object store has had."""
    url = os.environ.get("COUNTS")
    return sum(httpx.get(url, timeout=60).json()["requests"].values()) if url else 0


Made = tuple[Sequence[Ref], float, dict[str, float]]  # the shards, seconds, CPU seconds


def _by_threads(recipe: Recipe, on: Launcher, plans: Sequence[Shard]) -> Made:
    with ThreadPoolExecutor(SHARDS_IN_FLIGHT) as threads:
        usage, started = Usage(), time.perf_counter()
        made = list(threads.map(on.build, plans))
        return made, time.perf_counter() - started, usage.read()


def _by_a_flow(recipe: Recipe, on: Launcher, plans: Sequence[Shard]) -> Made:
    for logger in (logging.getLogger(), logging.getLogger("prefect")):
        logger.handlers.clear()  # `spinflow run` sends them to a file

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=SHARDS_IN_FLIGHT), persist_result=False)
    def stage() -> Made:
        usage, started = Usage(), time.perf_counter()
        made = Session(on.store, recipe, recipe, Ledger(on.store, recipe.name), on).sample("train_shards", plans)
        return made, time.perf_counter() - started, usage.read()

    return stage()


def measure(run: Run) -> dict[str, Any]:
    """The same in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-scale-out-") as folder, apart() if run.store else nullcontext({}) as there:
        home = there.get("HOME_URL", f"{folder}/home")
        flags = [f"--{name}" for name in ("prefect", "store") if getattr(run, name)]
        words = ["--run", *map(str, (run.gpus, run.rows_a_gpu, run.shard_rows, run.rate)), *flags]
        command = [sys.executable, "-m", "bench.scale_out", "--child", home]
        env = os.environ | _PREFECT | {"PREFECT_HOME": str(Path(folder) / "prefect"), "RAY_USAGE_STATS_ENABLED": "0"}
        env |= there | {"SPINFLOW_CACHE": f"{folder}/cache"}
        done = subprocess.run([*command, *words], stdout=subprocess.PIPE, text=True, check=True, env=env)
    line = next(line for line in done.stdout.splitlines() if line.startswith(_MARK))
    found: dict[str, Any] = json.loads(line[len(_MARK) :])
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=float, nargs=4, metavar=("GPUS", "ROWS_A_GPU", "SHARD_ROWS", "RATE"), help="only this")
    parser.add_argument("--prefect", action="store_true", help="that run as a flow")
    parser.add_argument("--store", action="store_true", help="with its home in an object store")
    parser.add_argument("--child", metavar="HOME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    runs = (Run(*map(int, options.run[:3]), options.run[3], options.prefect, options.store),) if options.run else _RUNS
    if options.child:
        print(_MARK + json.dumps(child(options.child, *runs)), flush=True)
        return
    found = []
    for run in runs:
        found.append(one := {"commit": commit(), "load_before": os.getloadavg()[0]} | measure(run))
        how = ", as a flow" * run.prefect + ", into an object store" * run.store
        what = f"{run.gpus} GPUs at {run.rate:,.0f} tokens/s, {run.shard_rows} rows a shard{how}"
        print(f"{what}: {run.rows:,} rows in {one['seconds']:.1f} s, {one['efficiency']:.1%} of perfect scaling", flush=True)
    result = {
        **facts("scale_out", "ray", "prefect", "pyarrow"),
        "runs": found,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
