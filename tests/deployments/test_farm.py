"""Deployments as people use them, on a real server, database and worker: run, schedule, cancel, kill, lose the server."""

import json
import os
import signal
import time

import pytest

from tests.deployments.conftest import SILENCE_S, Farm, until

pytestmark = pytest.mark.farm
LONG_TRAINING = ["training.epochs=150", "training.save_steps=20"]  # 600 steps


def test_bootstrap_can_be_run_again(farm: Farm) -> None:
    """Else a restarted stack doubles its automations, or loses what a person changed."""
    first = farm.http.post("/automations/filter", json={}).json()
    assert "spin-iteration/nightly" in farm.bootstrap()
    again = farm.http.post("/automations/filter", json={}).json()
    assert sorted(a["id"] for a in first) == sorted(a["id"] for a in again)
    assert len(first) == 2


def test_a_deployment_runs_to_completed(farm: Farm) -> None:
    """What the README promises. Names, tags, artifacts and the children's lines are where the UI looks for them; secrets are nowhere."""
    done = farm.prefect("deployment", "run", "spin-iteration/default", "--watch", "--param", "iteration=0")
    assert done.returncode == 0, done.stdout + done.stderr
    runs = farm.http.post("/flow_runs/filter", json={"sort": "START_TIME_DESC", "limit": 1}).json()
    run = runs[0]
    assert (run["name"], run["state_name"]) == ("night · iter-0", "Completed")
    assert {"campaign:night", "iteration:0"} <= set(run["tags"])
    artifacts = farm.artifacts(run["id"])
    assert artifacts["night-iter-0-sampling-train"]["data"] == artifacts["night-iter-0-training"]["data"] == 100
    assert "data:image/png;base64," in artifacts["night-iter-0"]["data"]
    assert [row["model"][:3] for row in json.loads(artifacts["night-results"]["data"])] == ["θ_0", "θ_1"]
    log = farm.log(run["id"])
    assert "'loss':" in log, "the trainer's own lines are missing"
    assert " 50%|" not in log
    assert "  0%|" not in log, "progress bars flood the log"
    logs = [path for path in (farm.home / "logs" / "latest").resolve().iterdir()]
    assert {"flow.log"} < {path.name for path in logs}

    texts = [log, str(run["parameters"]), str(artifacts), *(path.read_text(errors="replace") for path in logs)]
    texts += [path.read_text() for path in farm.home.rglob("*.json")]
    assert not any(farm.secret in text for text in texts), "a secret leaked"


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


def test_cancel_during_training_lets_the_waiting_run_go_on(farm: Farm) -> None:
    """Two runs of one campaign would train twice and race for its links. The second waits, and continues from the first's checkpoint."""
    first = farm.submit(LONG_TRAINING)
    until(farm.checkpoints, 120, "no checkpoint")
    second = farm.submit(LONG_TRAINING)
    until(lambda: "Another run of campaign night is at work" in farm.log(second), 60, "the second run does not wait")
    assert len(farm.processes("training.finetune_job")) in {1, 2}  # the launcher and its child
    farm.cancel(first)
    farm.wait(first, "Cancelled", 30)
    assert farm.checkpoints(), "the checkpoint is gone"
    farm.wait(second, "Completed", 180)
    assert farm.steps() == list(range(1, 601))


def _cancelled_in_time(farm: Farm, run: str) -> None:
    before = farm.manifests()
    farm.cancel(run)
    farm.wait(run, "Cancelled", 30)
    assert farm.processes("spin_core.") == []
    assert farm.processes("prefect.engine") == []
    assert before.items() <= farm.manifests().items()


def test_a_run_survives_its_server(farm: Farm) -> None:
    """The server is restarted for an update while a night's training goes on."""
    run = farm.submit(["training.epochs=151", "training.save_steps=20"])
    until(farm.checkpoints, 120, "no checkpoint")
    assert farm.server is not None
    farm.server.terminate()
    farm.server.wait(30)
    time.sleep(30)
    farm.start_server()
    farm.wait(run, "Completed", 180)


def test_worker_and_flow_killed_together(farm: Farm) -> None:
    """A machine that loses power leaves a run that is Running for ever, unless its missing heartbeats are noticed."""
    run = farm.submit(["training.epochs=152", "training.save_steps=20"])
    until(farm.checkpoints, 120, "no checkpoint")
    before = farm.manifests()
    assert farm.worker is not None
    for pid in [farm.worker.pid, *farm.processes("prefect.engine")]:
        os.kill(pid, signal.SIGKILL)
    farm.worker.wait()
    until(lambda: not farm.processes("spin_core."), 10, "children outlive the flow")
    farm.start_worker()
    farm.wait(run, "AwaitingRetry", 3 * SILENCE_S)
    farm.wait(run, "Completed", 180)
    assert [state for state in farm.states(run) if state in {"Crashed", "AwaitingRetry"}] == ["Crashed", "AwaitingRetry"]
    assert farm.run(run)["run_count"] == 2
    assert before.items() <= farm.manifests().items(), "something finished was done again"
    assert farm.steps() == list(range(1, 609))
