"""`make up` and `make down`: a Prefect server and a worker on this machine, without Docker, detached.

Everything lies in `<home>/server/`: the database, pid files, logs. While the server is up, a git-ignored `prefect.toml`
in the repository's root points Prefect's commands at it, so `prefect deployment run …` works there with no setting.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from spin_core.runtime import surroundings  # noqa: E402  this file is run as a script
from spin_core.runtime.errors import SpinflowError  # noqa: E402
from spin_core.store import Store  # noqa: E402

SETTINGS = ROOT / "prefect.toml"
_ROLES = ("worker", "server")  # in the order of their end
_GRACE_S = 40.0  # the worker ends its flow runs first


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("--home", default=os.environ.get("SPINFLOW_HOME") or "~/.spinflow", help="where artifacts live")
    parser.add_argument("--port", type=int, default=4200)
    parser.add_argument("--recipe", type=Path, help="recipe file whose values the deployments start from")
    arguments = parser.parse_args()
    try:
        surroundings.prepare()
        store = Store(arguments.home)
        if arguments.command == "up":
            surroundings.require_writable(store.home)
    except SpinflowError as error:
        raise SystemExit(f"error: {error}") from None
    folder = store.home / "server"
    if arguments.command == "up":
        up(folder, store.place, arguments.port, arguments.recipe)
    elif arguments.command == "down":
        down(folder)
    else:
        for role in _ROLES:
            print(f"{role}: {'up, process ' + str(pid) if (pid := running(folder, role)) else 'down'}")


def up(folder: Path, home: str, port: int, recipe: Path | None) -> None:
    """Starts what is not up yet, and applies automations and deployments."""
    folder.mkdir(parents=True, exist_ok=True)
    api = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,  # with loopback in NO_PROXY: the worker and the flow runs that it starts ask the server there
        "PREFECT_HOME": str(folder),
        "PREFECT_API_URL": api,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "3",  # a person who starts a run is waiting for it
        "SPINFLOW_HOME": home,
    }
    prefect = [sys.executable, "-m", "prefect"]
    if not running(folder, "server"):
        _refuse_taken_port(port)
        start(folder, "server", [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)], environment)
    _wait_until_healthy(folder, api)
    SETTINGS.write_text(f'# written by `make up`, removed by `make down`\n[api]\nurl = "{api}"\n')
    choice = ["--recipe", str(recipe)] if recipe else []
    if subprocess.call([sys.executable, str(ROOT / "deployments" / "bootstrap.py"), *choice], env=environment, cwd=ROOT):
        raise SystemExit(1)
    if not running(folder, "worker"):
        start(folder, "worker", [*prefect, "worker", "start", "--pool", "spinflow", "--type", "process"], environment)
    print(f"\nUI           http://127.0.0.1:{port}\nlogs         {folder}/server.log, {folder}/worker.log")
    print("run          prefect deployment run spin-iteration/default --watch\nend          make down")


def down(folder: Path) -> None:
    """Ends worker and server with all that they started."""
    SETTINGS.unlink(missing_ok=True)
    for role in _ROLES:
        pid = running(folder, role)
        if pid:
            _end(pid)
        (folder / f"{role}.pid").unlink(missing_ok=True)
        print(f"{role}: {'ended' if pid else 'was not up'}")


def start(folder: Path, role: str, command: list[str], environment: Mapping[str, str]) -> None:
    """Starts a detached process with a log and a pid file."""
    with (folder / f"{role}.log").open("a") as log:
        child = subprocess.Popen(
            command, cwd=ROOT, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    (folder / f"{role}.pid").write_text(f"{child.pid} {_started(child.pid)}")


def running(folder: Path, role: str) -> int | None:
    """The process of a role, if it is the one that was started: pids are used again after a reboot."""
    try:
        pid, started = (folder / f"{role}.pid").read_text().split()
        return int(pid) if _started(int(pid)) == started else None
    except (OSError, ValueError):
        return None


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot (proc(5), field 22)."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]


def _end(pid: int) -> None:
    """SIGTERM to the process, then SIGKILL to what is left of its session."""
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_S
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.2)
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _refuse_taken_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise SystemExit(f"error: port {port} is taken; choose another with `make up PORT=…`, or end what listens there") from None


def _wait_until_healthy(folder: Path, api: str) -> None:
    deadline = time.monotonic() + 180.0
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"{api}/health", timeout=5.0).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if not running(folder, "server"):
            raise SystemExit(f"error: the server ended as it started; see {folder}/server.log")
        time.sleep(0.5)
    raise SystemExit(f"error: the server did not answer within 180 s; see {folder}/server.log")


if __name__ == "__main__":
    main()
