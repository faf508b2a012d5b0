"""A real farm: Prefect's server on a PostgreSQL of its own, bootstrapped, with a process worker; shared by the tests of this room."""

import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import httpx
import pytest

from tests.rehearsal.machine import make_machine

ROOT = Path(__file__).parents[2]
SILENCE_S = 35  # heartbeats come every 30 s, Prefect's least
T = TypeVar("T")
RECIPE = """
name: night
model: {{name: {model}}}
data: {{name: demo, subset: 40, test_size: 8, max_prompt_tokens: 256}}
generation: {{engine: transformers, max_new_tokens: 24, shard_rows: 16}}
training: {{epochs: 1, pairs_per_step: 8, learning_rate: 1.0e-3, save_steps: 2}}
iterations: [{{}}]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: Callable[[], T], timeout_s: float, why: str) -> T:
    """Asks `what` until it says something true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.25)
    raise AssertionError(f"timed out after {timeout_s:.0f} s: {why}")


class Farm:
    """Server, worker and what a person does with them."""

    def __init__(self, folder: Path, database: str) -> None:
        self.home, self.folder = folder / "home", folder
        self.mark = f"SPINFLOW_TEST={uuid4().hex}"
        self.port = free_port()
        self.api = f"http://127.0.0.1:{self.port}/api"
        name, value = self.mark.split("=")
        token, password = f"hf_{uuid4().hex}", uuid4().hex
        self.secrets = [token, password]
        self.environment = {
            **make_machine(folder / "bin", 1),  # with a GPU, so that every run holds it and gives it back
            name: value,
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "SPINFLOW_HOME": str(self.home),
            "SPINFLOW_RECIPE": str(folder / "night.yaml"),
            "HF_TOKEN": token,
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_API_AUTH_STRING": f"tester:{password}",
            "PREFECT_API_AUTH_STRING": f"tester:{password}",
            "PREFECT_API_DATABASE_CONNECTION_URL": database,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
            "DO_NOT_TRACK": "1",
        }
        self.server: subprocess.Popen[bytes] | None = None
        self.worker: subprocess.Popen[bytes] | None = None
        self.http = httpx.Client(base_url=self.api, timeout=30.0, auth=("tester", password))

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("a") as log:
            arguments = [sys.executable, "-m", *command]
            return subprocess.Popen(arguments, cwd=ROOT, env=self.environment, stdout=log, stderr=log, start_new_session=True)

    def start_server(self) -> None:
        self.server = self.start("server", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(self.port))
        until(self.healthy, 180, "the server does not answer")

    def healthy(self) -> bool:
        try:
            return self.http.get("/health").status_code == 200
        except httpx.TransportError:
            return False

    def start_worker(self) -> None:
        self.worker = self.start("worker", "prefect", "worker", "start", "--pool", "spinflow", "--type", "process", "--name", uuid4().hex)

    def bootstrap(self) -> str:
        command = [sys.executable, "deployments/bootstrap.py", "--silence", str(SILENCE_S)]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def prefect(self, *arguments: str, timeout_s: float = 600.0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "prefect", *arguments]
        return subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=timeout_s)

    def deployment(self, name: str) -> dict[str, Any]:
        return dict(self.http.get(f"/deployments/name/{name}").raise_for_status().json())

    def submit(self, overrides: list[str], state: str = "SCHEDULED") -> str:
        """Makes a run of spin-iteration/default, which a worker starts unless it is in another state; returns its id."""
        path = f"/deployments/{self.deployment('spin-iteration/default')['id']}/create_flow_run"
        body = {"parameters": {"overrides": overrides}, "state": {"type": state}}
        return str(self.http.post(path, json=body).raise_for_status().json()["id"])

    def run(self, run_id: str) -> dict[str, Any]:
        return dict(self.http.get(f"/flow_runs/{run_id}").raise_for_status().json())

    def wait(self, run_id: str, state: str, timeout_s: float) -> dict[str, Any]:
        """Waits for a state's name; a final state that is another one is an error at once."""

        def there() -> dict[str, Any] | None:
            run = self.run(run_id)
            final = run["state_type"] in {"COMPLETED", "FAILED", "CANCELLED"}
            assert run["state_name"] == state or not final, f"{run['state_name']}: {run['state']['message']}\n{self.log(run_id)}"
            return run if run["state_name"] == state else None

        try:
            return until(there, timeout_s, f"not {state}")
        except AssertionError as error:
            raise AssertionError(f"{error}; the run is {self.run(run_id)['state_name']}\n{self.log(run_id)}") from None

    def states(self, run_id: str) -> list[str]:
        return [state["name"] for state in self.http.get("/flow_run_states/", params={"flow_run_id": run_id}).raise_for_status().json()]

    def set_state(self, run_id: str, state: str) -> None:
        answer = self.http.post(f"/flow_runs/{run_id}/set_state", json={"state": {"type": state}}).raise_for_status().json()
        assert answer["status"] == "ACCEPT", answer

    def log(self, run_id: str) -> str:
        body = {"logs": {"flow_run_id": {"any_": [run_id]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return "\n".join(line["message"] for line in self.http.post("/logs/filter", json=body).raise_for_status().json())

    def artifacts(self, run_id: str) -> dict[str, dict[str, Any]]:
        body = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
        return {found["key"]: found for found in self.http.post("/artifacts/filter", json=body).raise_for_status().json()}

    def processes(self, word: str) -> list[int]:
        """The farm's processes whose command line has `word`."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found += [int(entry.name)] if word.encode() in (entry / "cmdline").read_bytes() else []
            except OSError:
                continue
        return found

    def manifests(self) -> dict[str, float]:
        return {str(path.parent): path.stat().st_mtime for path in (self.home / "artifacts").rglob("MANIFEST.json")}

    def checkpoints(self) -> list[Path]:
        return [path.parent for path in (self.home / "work").glob("*/*/checkpoint-*/trainer_state.json")]

    def freeze_trainer(self) -> None:
        """Holds the training at its first checkpoint, so that what a test does next is in time on any machine."""
        until(self.checkpoints, 120, "no checkpoint")
        for pid in self.processes("spin_core.training.job"):
            os.kill(pid, signal.SIGSTOP)

    def saved_metrics(self) -> list[str]:
        """The metric lines that the last checkpoint has behind it; their timings tell them from those of steps done again."""
        checkpoint = max(self.checkpoints(), key=lambda path: int(path.name.removeprefix("checkpoint-")))
        lines = (checkpoint.parent / "metrics.jsonl").read_text().splitlines()
        return lines[: int(checkpoint.name.removeprefix("checkpoint-"))]

    def newest_metrics(self) -> list[str]:
        """The metric lines of the newest model."""
        newest = max(self.home.glob("artifacts/model/*/metrics.jsonl"), key=lambda path: path.stat().st_mtime)
        return newest.read_text().splitlines()

    def end(self) -> None:
        for process in (self.worker, self.server):
            if process is not None:
                process.terminate()
        time.sleep(1.0)
        for pid in self.processes(""):
            os.kill(pid, signal.SIGKILL)
        for process in (self.worker, self.server):
            if process is not None:
                process.wait()


def postgres_tool(name: str) -> str | None:
    return next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)), None) or shutil.which(name)


@pytest.fixture(scope="session")
def database() -> Iterator[str]:
    """The URL of an empty PostgreSQL in a temporary folder."""
    initdb, server = postgres_tool("initdb"), postgres_tool("postgres")
    if not initdb or not server:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    as_user: list[str] = []
    if os.getuid() == 0:  # PostgreSQL refuses to run as root
        try:
            owner = pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        as_user = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}", "--clear-groups"]
    folder = Path(tempfile.mkdtemp(prefix="spinflow-postgres-"))
    if as_user:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
    port = free_port()
    process = None
    try:
        make = [*as_user, initdb, "-D", f"{folder}/data", "-U", "prefect", "--auth=trust", "--encoding=UTF8", "--no-sync"]
        subprocess.run(make, check=True, capture_output=True, cwd=folder)
        options = ["-D", f"{folder}/data", "-p", str(port), "-h", "127.0.0.1", "-k", str(folder), "-c", "fsync=off"]
        process = subprocess.Popen([*as_user, server, *options], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: list(folder.glob(".s.PGSQL.*")), 60, "PostgreSQL does not start")
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
    finally:
        if process is not None:
            process.send_signal(signal.SIGINT)  # a fast shutdown
            process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def farm(database: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    """Server on PostgreSQL, bootstrapped, with a worker."""
    folder = tmp_path_factory.mktemp("farm")
    (folder / "night.yaml").write_text(RECIPE.format(model=tiny_model))
    found = Farm(folder, database)
    try:
        found.start_server()
        found.bootstrap()
        found.start_worker()
        yield found
    finally:
        found.end()
