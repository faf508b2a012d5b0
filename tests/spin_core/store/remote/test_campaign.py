"""A campaign whose home is an S3 server: begun by one machine, ended by another, counted; and broken in every way a store breaks."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.campaign import ROOT
from tests.s3 import s3
from tests.spin_core.store.remote.campaign import InBucket


def command(campaign: InBucket, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *words, "--home", campaign.url],
        cwd=campaign.folder,
        env={**campaign.environment, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "PREFECT_HOME": str(campaign.folder / "prefect")},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_machine_begins_and_another_goes_on(tmp_path: Path, tiny_model: Path) -> None:
    """If it fails, a worker needs the disk of the one before it; or the store's bill is a surprise."""
    with s3() as server:
        campaign = InBucket(tmp_path, tiny_model, server, rows=8, iterations=2)
        command(campaign, "iterate", "tiny.yaml")
        begun, stages = dict(server.requests), sum(name.startswith("PUT manifests/") for name in server.names)
        assert not [name for name in server.names if name.startswith("GET files/")], "what was made here is not fetched"
        assert sum(begun.values()) < 10 * stages + 20, begun
        campaign.look()

        campaign.use("b")
        server.reset()
        assert "1 of 2" in command(campaign, "ls")
        assert "best model: θ_" in command(campaign, "status", "tiny.yaml")
        assert server.received < 200_000, "to look moves no models"
        server.reset()
        campaign.start()
        assert campaign.end() == 0, campaign.output()
        twice = [name for name, count in server.names.items() if count > 1 and name.startswith("GET files/")]
        assert not twice, "a machine reads nothing twice"
        print(json.dumps({"requests": server.requests, "sent": server.sent, "received": server.received}))
        campaign.check()

        campaign.use("c")
        assert "nothing to remove" in command(campaign, "gc")
        command(campaign, "export", "tiny", str(tmp_path / "out"), "--iteration", "2")
        assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.long
def test_a_store_that_fails_and_machines_that_die(tmp_path: Path, tiny_model: Path) -> None:
    """Every eighth request fails in some way; the flow is killed again and again, and goes on elsewhere."""
    dice = random.Random(0)
    kinds = ["500", "503", "lost", "lost answer", "hang", "stale"]
    with s3(hang_s=2.0) as server:
        campaign = InBucket(tmp_path, tiny_model, server, rows=14, iterations=2)
        kills, deadline = 0, time.monotonic() + 2400
        while True:
            server.fault = lambda method, name: dice.choice(kinds) if dice.random() < 0.125 else ""
            campaign.use(f"machine-{kills % 3}")
            campaign.start()
            alive = time.monotonic() + (dice.uniform(15, 50) if kills < 6 else 2400)
            while campaign.running() and time.monotonic() < alive:
                assert time.monotonic() < deadline, campaign.output()
                time.sleep(0.5)
            if campaign.running():
                assert campaign.run is not None
                campaign.run.send_signal(signal.SIGKILL)
                campaign.killed = True
                kills += 1
            status = campaign.end()
            server.fault = lambda method, name: ""
            campaign.look()
            if status == 0:
                break
        command(campaign, "gc", "--delete")  # what a kill left between a commit and the end of its work, or a stale listing hid
        campaign.check()
        print(f"{kills} kills, {sum(server.failed.values())} faults of the store: {dict(server.failed)}")
        assert kills >= 3
        assert sum(server.failed.values()) >= 20
        assert set(server.failed) == set(kinds)
