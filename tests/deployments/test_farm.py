"""Deployments as people use them, on a real server, database and worker: run, schedule, cancel, kill, lose the server."""

import json
import os
import re
import signal
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import httpx
import pytest
import yaml

from tests.deployments.conftest import ROOT, SILENCE_S, Farm, until

pytestmark = pytest.mark.farm


def training(epochs: int) -> list[str]:
    """Overrides for a training of 4 steps an epoch with a checkpoint every 10; everything before it is found in the store."""
    return [f"training.epochs={epochs}", "training.save_steps=10"]


def test_bootstrap_can_be_run_again(farm: Farm) -> None:
    """Else a restarted stack doubles its automations, or loses what a person changed."""
    first = farm.http.post("/automations/filter", json={}).json()
    assert "spin-iteration/nightly" in farm.bootstrap()
    again = farm.http.post("/automations/filter", json={}).json()
    assert sorted(a["id"] for a in first) == sorted(a["id"] for a in again)
    assert len(first) == 3


def test_a_deployment_runs_to_completed(farm: Farm) -> None:
    """What the README promises. Names, tags, artifacts and the children's lines are where the UI looks for them; secrets are nowhere."""
    done = farm.prefect("deployment", "run", "spin-iteration/default", "--watch", "--param", "iteration=0")
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"UUID: (\S+)", done.stdout)
    assert found, done.stdout
    run = farm.run(found[1])
    assert (run["name"], run["state_name"]) == ("night · iter-0", "Completed")
    assert {"campaign:night", "iteration:0"} <= set(run["tags"])
    artifacts = farm.artifacts(run["id"])
    assert artifacts["night-iter-0-sampling-train"]["data"] == artifacts["night-iter-0-training"]["data"] == 100
    assert "data:image/svg+xml;base64," in artifacts["night-iter-0"]["data"]
    assert [row["model"][:3] for row in json.loads(artifacts["night-results"]["data"])] == ["θ_0", "θ_1"]
    log = farm.log(run["id"])
    assert "'loss':" in log, "the trainer's own lines are missing"
    assert "sees none of the GPUs" in log, "the worker's children were not given the GPU"
    assert " 50%|" not in log
    assert "  0%|" not in log, "progress bars flood the log"
    logs = [path for path in (farm.home / "logs" / "latest").resolve().iterdir()]
    assert {"flow.log"} < {path.name for path in logs}

    texts = [log, str(run["parameters"]), str(artifacts), *(path.read_text(errors="replace") for path in logs)]
    texts += [path.read_text() for path in farm.home.rglob("*.json")]
    assert not any(secret in text for text in texts for secret in farm.secrets), "a secret leaked"
    assert httpx.get(f"{farm.api}/flow_runs/{run['id']}").status_code == 401, "the API is open"


def test_a_schedule_fires_and_a_finished_campaign_has_nothing_to_do(farm: Farm) -> None:
    """The night after the last iteration must not train it again."""
    nightly = farm.deployment("spin-iteration/nightly")
    assert nightly["schedules"][0]["schedule"] == {"cron": "0 1 * * *", "timezone": "UTC", "day_or": True}
    assert nightly["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    before = farm.manifests()
    schedule = [{"schedule": {"interval": 5.0}, "active": True}]
    (made,) = farm.http.post(f"/deployments/{nightly['id']}/schedules", json=schedule).raise_for_status().json()
    body = {"deployments": {"id": {"any_": [nightly["id"]]}}, "flow_runs": {"state": {"name": {"any_": ["NothingToDo"]}}}}
    try:
        run = until(lambda: farm.http.post("/flow_runs/filter", json=body).json(), 90, "no scheduled run ended")[0]
    finally:
        farm.http.delete(f"/deployments/{nightly['id']}/schedules/{made['id']}").raise_for_status()
    assert run["auto_scheduled"]
    assert "has all its 1 iterations" in run["state"]["message"]
    assert farm.manifests() == before


def test_cancel_during_generation(farm: Farm) -> None:
    """A cancelled run that leaves an engine behind blocks the GPU for everyone."""
    run = farm.submit(["generation.seed=7", "generation.shard_rows=2"])
    until(lambda: farm.processes("generation.transformers_engine"), 120, "no engine")
    _cancelled_in_time(farm, run)


@pytest.mark.long
def test_cancel_during_training_lets_the_waiting_run_go_on(farm: Farm) -> None:
    """Two runs of one campaign would train twice and race for its links. The second waits, and continues from the first's checkpoint."""
    first = farm.submit(training(50))
    farm.freeze_trainer()
    second = farm.submit(training(50))
    until(lambda: "Another run of campaign night is at work" in farm.log(second), 60, "the second run does not wait")
    assert len(farm.processes("spin_core.training.job")) in {1, 2}  # on one GPU or more the launcher, too
    farm.set_state(first, "CANCELLING")
    farm.wait(first, "Cancelled", 30)
    saved = farm.saved_metrics()
    farm.wait(second, "Completed", 400)
    _continued(farm, saved, steps=200)


class Mailbox(BaseHTTPRequestHandler):
    """A webhook's far end."""

    messages: ClassVar[list[dict[str, str]]] = []

    def do_POST(self) -> None:
        self.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()


@pytest.mark.long
def test_a_person_is_told_of_a_failed_run(farm: Farm) -> None:
    """A night that failed in silence is found when its model is missed."""
    with HTTPServer(("127.0.0.1", 0), Mailbox) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        farm.environment["SPINFLOW_NOTIFY_WEBHOOK"] = f"http://127.0.0.1:{server.server_port}/"
        farm.bootstrap()
        run = farm.submit(["model.name=/nowhere"])
        try:
            until(lambda: Mailbox.messages, 60, "nobody was told")
        finally:
            server.shutdown()
    assert Mailbox.messages[0]["subject"] == "spinflow run Failed"
    assert "the folder /nowhere does not exist" in Mailbox.messages[0]["body"]
    assert run in Mailbox.messages[0]["body"], "the link to the run is missing"


def test_the_server_takes_the_kubernetes_template(farm: Farm) -> None:
    template = yaml.safe_load((ROOT / "deployments/kubernetes/base-job-template.yaml").read_text())
    farm.http.post("/work_pools/", json={"name": "k8s", "type": "kubernetes", "base_job_template": template}).raise_for_status()
    wrong = template | {"variables": {"type": "object", "properties": {}}}
    assert farm.http.patch("/work_pools/k8s", json={"base_job_template": wrong}).status_code == 422
    farm.http.delete("/work_pools/k8s").raise_for_status()


def _continued(farm: Farm, saved: list[str], steps: int) -> None:
    """The new model's training went on from the checkpoint: steps before it are those of the run that was ended, timings included."""
    metrics = farm.newest_metrics()
    assert len(saved) >= 10
    assert metrics[: len(saved)] == saved
    assert [json.loads(line)["step"] for line in metrics] == list(range(1, steps + 1))


def _cancelled_in_time(farm: Farm, run: str) -> None:
    before = farm.manifests()
    farm.set_state(run, "CANCELLING")
    farm.wait(run, "Cancelled", 30)
    for word in ("spin_core.", "prefect.engine"):  # one that was starting is about to end with the thread that started it
        until(partial(lambda name: not farm.processes(name), word), 10, f"{word} stays")
    assert before.items() <= farm.manifests().items()


@pytest.mark.long
def test_a_run_survives_its_server(farm: Farm) -> None:
    """The server is restarted for an update while a night's training goes on."""
    run = farm.submit(training(51))
    until(farm.checkpoints, 120, "no checkpoint")
    assert farm.server is not None
    farm.server.terminate()
    farm.server.wait(30)
    time.sleep(30)
    farm.start_server()
    farm.wait(run, "Completed", 400)


@pytest.mark.long
def test_worker_and_flow_killed_together(farm: Farm) -> None:
    """A machine that loses power leaves a run that is Running for ever, unless its missing heartbeats are noticed.

    A run that is cancelled when its machine is gone already is Cancelled all the same.
    """
    orphan = farm.submit([], "PENDING")
    for state in ("RUNNING", "CANCELLING"):
        farm.set_state(orphan, state)
    run = farm.submit(training(52))
    farm.freeze_trainer()
    before = farm.manifests()
    assert farm.worker is not None
    for pid in [farm.worker.pid, *farm.processes("prefect.engine")]:
        os.kill(pid, signal.SIGKILL)
    farm.worker.wait()
    until(lambda: not farm.processes("spin_core."), 10, "children outlive the flow")
    saved = farm.saved_metrics()
    farm.start_worker()
    farm.wait(run, "AwaitingRetry", 3 * SILENCE_S)
    farm.wait(run, "Completed", 400)
    assert [state for state in farm.states(run) if state in {"Crashed", "AwaitingRetry"}] == ["Crashed", "AwaitingRetry"]
    assert farm.run(run)["run_count"] == 2
    assert before.items() <= farm.manifests().items(), "something finished was done again"
    _continued(farm, saved, steps=208)
    farm.wait(orphan, "Cancelled", 60)
