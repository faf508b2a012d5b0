"""Children and engines on three nodes, of which one is lost at the worst moment; light ones, so that it takes seconds."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from spin_core.cluster import lease, room
from spin_core.cluster import machine as machine_module
from spin_core.cluster.join import joined
from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Answer, OnAnswer, Prompt, Sampler
from spin_core.generation.pool import EnginePool
from spin_core.recipe import GenerationSettings
from spin_core.runtime import progress
from spin_core.runtime.errors import BadInput, ChildCrash, SpinflowError
from spin_core.runtime.machine import Child, Place
from spin_core.store import Ref, Store
from tests.spin_core.cluster.nodes import ROOT, Nodes, cluster_of, joins, wait_until

MODULE = "tests.spin_core.cluster.light"
ENDS = Ends([1], ["</s>"], 1)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with cluster_of(3) as found:
        yield found


@pytest.fixture
def machine(nodes: Nodes, tmp_path: Path) -> Iterator[Any]:
    """Nothing that a run has started outlives it."""
    nodes.replace()
    with joined(Store(tmp_path / "home"), nodes.address) as found:
        assert found is not None
        wait_until(lambda: found.device_count == 3)
        yield found
    wait_until(lambda: not nodes.pids(MODULE), 15)


def files_job(folder: Path, count: int, seconds: float) -> dict[str, Any]:
    return {"files": [str(folder / f"file-{n}") for n in range(count)], "journal": str(folder / "journal"), "seconds": seconds}


@pytest.mark.long
def test_a_lost_node_costs_what_it_had_in_hand(nodes: Nodes, machine: Any, tmp_path: Path) -> None:
    """If it fails, a node that goes takes finished work with it, has it done twice, or leaves a child behind."""
    job, said = files_job(tmp_path, 12, 0.5), []
    end = progress.listen(lambda event: said.append(event))

    def kill() -> None:
        wait_until(lambda: len([*tmp_path.glob("file-*")]) >= 3)
        nodes.kill(nodes.pids(MODULE)[0])

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ChildCrash, match="was lost"):
        machine.spread(Child(MODULE, job, "light", "taking files"), 12)
    killer.join()
    machine.spread(Child(MODULE, job, "light", "taking files"), 12)  # as a retry does
    end()
    done = Counter(line.split()[0] for line in (tmp_path / "journal").read_text().splitlines())
    assert sorted(done) == sorted(Path(file).name for file in job["files"])
    assert set(done.values()) <= {1, 2}
    assert sum(done.values()) <= 13  # what the lost node had in hand, at most
    assert f"runs on {socket.gethostname()}, GPU 0" in {event.note for event in said if event.name == "taking files"}


def command(place: Place) -> list[str]:
    return ["-X", f"place={place.rank}/{place.count}x{place.gpus}@{bool(place.address)}:{place.port > 0}"]


@pytest.mark.long
def test_a_training_has_a_place_on_every_node(nodes: Nodes, machine: Any, tmp_path: Path) -> None:
    """And where one rank fails, the others are not left waiting for it."""
    child = Child(MODULE, {"folder": str(tmp_path), "seconds": 0.1}, "light", "training")
    machine.together(child, command)
    assert [(tmp_path / f"rank-{rank}").read_text() for rank in range(3)] == [f"{rank}/3x1@True:True 0" for rank in range(3)]
    assert "here is 0" in (tmp_path / "home" / "logs" / "light.log").read_text()

    started = time.monotonic()
    with pytest.raises(BadInput, match="this cannot be done"):
        machine.together(Child(MODULE, {"folder": str(tmp_path), "seconds": 600, "wrong": 1}, "light", "training"), command)
    assert time.monotonic() - started < 60
    wait_until(lambda: not nodes.pids(MODULE), 15)


@pytest.mark.long
def test_a_training_that_loses_a_node_is_planned_without_it(nodes: Nodes, machine: Any, tmp_path: Path) -> None:
    """If it fails, a retry waits for ever for a node that is gone."""

    def kill() -> None:
        nodes.kill(wait_until(lambda: nodes.pids(MODULE))[0])

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ChildCrash, match="was lost"):
        machine.together(Child(MODULE, {"folder": str(tmp_path), "seconds": 600}, "light", "training"), command)
    killer.join()
    machine.together(Child(MODULE, {"folder": str(tmp_path), "seconds": 0.1}, "light", "training"), command)
    assert (tmp_path / "rank-1").read_text() == "1/2x1@True:True 0"


class Slow:
    """An engine that takes a shard longer than a process outlives its raylet."""

    window, address, node, where = 2, None, "", ""

    def __init__(self, sampler: Sampler, log: Path, part: int, parts: int) -> None:
        pass

    def alive(self) -> bool:
        return True

    def sample(self, prompts: Sequence[Prompt], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        time.sleep(1.5)
        for number, _ in enumerate(prompts, 1):
            on_answer(number, 1)
        return [Answer([prompt.seed], "stop", "") for prompt in prompts]

    def close(self) -> None:
        pass


def test_a_lost_node_costs_its_shards_and_a_new_one_is_used(nodes: Nodes, machine: Any, tmp_path: Path) -> None:
    """Every shard is answered exactly once, whatever happens to the nodes meanwhile."""
    machine._make_engine = Slow
    sampler = sampler_of(tmp_path)
    used: Counter[str] = Counter()
    lost = threading.Event()

    def enough() -> bool:
        return lost.is_set() and len(used) == 4  # the new node, too

    def shard(number: int) -> int:
        for _ in range(4):
            try:
                with pool.lease(sampler, 1) as engine:
                    (answer,) = engine.sample([Prompt([1], number)], ENDS, lambda done, new: None)
                    used[engine.node] += 1
                    return answer.ids[0]
            except ChildCrash:
                lost.set()
        raise AssertionError(f"shard {number} was tried four times")

    def work(first: int) -> list[tuple[int, int]]:
        done, number = [(first, shard(first))], first
        while not enough() and time.monotonic() < deadline:
            number += 12
            done.append((number, shard(number)))
        return done

    deadline = time.monotonic() + 120
    with EnginePool(Store(tmp_path / "home"), machine.starts) as pool, ThreadPoolExecutor(12) as threads:
        futures = [threads.submit(work, number) for number in range(12)]
        wait_until(lambda: len(used) == 3)
        time.sleep(0.3)  # each has its next shards in hand
        nodes.kill_node(nodes.nodes[0])
        nodes.replace()
        answered = [pair for future in futures for pair in future.result()]
    assert enough()
    assert all(asked == answer for asked, answer in answered)
    assert sum(used.values()) == len(answered)


def sampler_of(folder: Path, **settings: Any) -> Sampler:
    return Sampler(Ref("model", "a", folder), GenerationSettings(engine="transformers", **settings), 8)


def free(what: str) -> float:
    """Of a resource, over all nodes."""
    import ray

    return float(ray.available_resources().get(what, 0.0))


def slow_over_nodes(group: Any, *args: Any) -> Slow:
    """In place of vLLM's server: it knows nothing of the group that it is in."""
    assert len(group.bundle_specs) == 2
    return Slow(*args)


def test_an_engine_takes_memory_and_gpus_of_several_nodes(machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, engines are started where they cannot be, wait for ever for what no node has, or keep what they had."""
    machine._make_engine, machine._make_wide = Slow, slow_over_nodes
    gpus = wait_until(lambda: free("GPU") == 3 and 3)
    memory = free("memory")
    with EnginePool(Store(tmp_path / "home"), machine.starts) as pool:
        with pool.lease(sampler_of(tmp_path), 1):
            wait_until(lambda: free("memory") <= memory - 2**30)
        with pool.lease(sampler_of(tmp_path, tensor_parallel=2), 1):
            wait_until(lambda: free("GPU") == gpus - 2)  # one engine; for another there is no room
            assert sum(seat.engine is not None for seat in pool._seats) == 1
    wait_until(lambda: (free("GPU"), free("memory")) == (gpus, memory))

    monkeypatch.setattr(room, "_HOPE_S", 1.0)
    monkeypatch.setattr(machine_module, "engine_memory", lambda *args: 2**45)  # more would be too much for the numbers of Ray
    sampler = sampler_of(tmp_path, seed=2)
    told = r"an engine needs 1 GPU and 32768.0 GiB of memory, and no node has: .*; add a node"
    with EnginePool(Store(tmp_path / "home"), machine.starts) as pool, pytest.raises(SpinflowError, match=told), pool.lease(sampler, 1):
        pass


@pytest.mark.long
def test_an_engine_over_two_nodes_loses_one(nodes: Nodes, machine: Any, tmp_path: Path) -> None:
    """It starts again over those that are left, and while there are too few it waits for another."""
    machine._make_wide = slow_over_nodes
    sampler = sampler_of(tmp_path, tensor_parallel=2)

    def other_than(*gone: str) -> Any:
        """The node that answers now, once it is none of those: a process outlives its raylet by a moment."""
        with suppress(ChildCrash), pool.lease(sampler, 1) as engine:
            assert engine.sample([Prompt([1], 7)], ENDS, lambda done, new: None)[0].ids == [7]
            return engine.node if engine.node not in gone else ""

    def kill(node_id: str) -> None:
        nodes.kill_node(next(node for node in nodes.nodes if node.node_id == node_id))

    with EnginePool(Store(tmp_path / "home"), machine.starts) as pool:
        first = other_than()
        kill(first)
        second = wait_until(lambda: other_than(first), 120)
        kill(second)
        nodes.replace()
        assert wait_until(lambda: other_than(first, second), 120)


@pytest.mark.long
def test_a_node_without_spinflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, it is taken for one that is gone: tried for minutes, and the cause in Ray's logs only."""
    (tmp_path / "spin_core").mkdir()
    (tmp_path / "spin_core" / "__init__.py").write_text("raise ModuleNotFoundError('No module named spin_core')")
    with cluster_of(0) as nodes:
        ours = {**os.environ, "PYTHONPATH": str(ROOT)}
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        nodes.add()
        run = subprocess.run(
            joins(tmp_path / "home", nodes.address, "found.precision()"), cwd="/", env=ours, capture_output=True, text=True, timeout=60
        )
    assert "cannot run spinflow (ModuleNotFoundError: No module named spin_core); have the same" in run.stderr.splitlines()[-1]


def test_a_node_with_another_version(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, what the two do not have in common is found out in the middle of a stage, if at all."""
    monkeypatch.setattr(lease, "here", lambda: "9.9")
    with pytest.raises(SpinflowError, match=r"has spinflow .*, this run 9\.9; have the same"):
        machine.precision()


def test_who_names_no_cluster_and_who_names_one_that_is_not_there(tmp_path: Path) -> None:
    with joined(Store(tmp_path), "") as found:
        assert found is None
    with pytest.raises(SpinflowError, match=r"none at .* that can be joined"), joined(Store(tmp_path), "127.0.0.1:9"):
        pass
