"""Brings a Prefect server to what spinflow needs: work pool, queues, limits, automations, deployments. Run it as often as you like.

Needs PREFECT_API_URL (or a prefect.toml). Notifications come from SPINFLOW_NOTIFY_WEBHOOK, SPINFLOW_NOTIFY_SLACK, or
SPINFLOW_NOTIFY_EMAIL with SPINFLOW_NOTIFY_EMAIL_FROM and SENDGRID_API_KEY.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.workers.utilities import get_default_base_job_template_for_infrastructure_type

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from deployments import automations  # noqa: E402  this file is run as a script
from spin_core.runtime import environment  # noqa: E402

POOL = "spinflow"
QUEUES = {"default": 1, "nightly": 2}  # a person who waits goes before the night


def main() -> None:
    """Waits for the server, then creates or updates everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", type=Path, help="recipe file whose values the deployments start from (default: prefect.yaml says)")
    parser.add_argument("--pool-type", default="process", help="process, docker or kubernetes")
    parser.add_argument("--base-job-template", type=Path, help="YAML or JSON file, e.g. deployments/kubernetes/base-job-template.yaml")
    parser.add_argument("--pool-limit", type=int, default=4, help="flow runs that the work pool runs at once")
    parser.add_argument("--silence", type=float, default=90.0, metavar="SECONDS", help="without heartbeat for so long, a run has crashed")
    parser.add_argument("--wait", type=float, default=180.0, metavar="SECONDS", help="how long to wait for the server")
    arguments = parser.parse_args()
    environment.keep_loopback_direct()
    template = yaml.safe_load(arguments.base_job_template.read_text()) if arguments.base_job_template else None
    wait_for_server(arguments.wait)
    with get_client(sync_client=True) as client:
        work_pool(client, arguments.pool_type, template, arguments.pool_limit)
    for name in automations.apply(arguments.silence):
        print(f"automation   {name}")
    deploy(arguments.recipe)


def wait_for_server(timeout_s: float) -> None:
    """Returns once the server answers; ends the program with one line if it does not."""
    url = get_current_settings().api.url
    if not url:
        raise SystemExit("error: PREFECT_API_URL is not set; `make up` starts a local server and sets it")
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
        if problem is None:
            return
        time.sleep(1.0)
    raise SystemExit(f"error: the Prefect server at {url} did not answer within {timeout_s:.0f} s: {problem}")


def work_pool(client: SyncPrefectClient, kind: str, template: dict[str, Any] | None, limit: int) -> None:
    """The pool and its queues."""
    try:
        found = client.read_work_pool(POOL)
        if found.type != kind:
            raise SystemExit(f"error: work pool {POOL} is of type {found.type}, not {kind}; delete it or choose that type")
        client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=limit, **({"base_job_template": template} if template else {})))
    except ObjectNotFound:
        template = template or asyncio.run(get_default_base_job_template_for_infrastructure_type(kind)) or {}
        client.create_work_pool(WorkPoolCreate(name=POOL, type=kind, concurrency_limit=limit, base_job_template=template))
    print(f"work pool    {POOL} ({kind}, at most {limit} runs at once)")
    for name, priority in QUEUES.items():
        try:
            client.update_work_queue(client.read_work_queue_by_name(name, work_pool_name=POOL).id, priority=priority)
        except ObjectNotFound:
            client.create_work_queue(name=name, work_pool_name=POOL, priority=priority)
        print(f"work queue   {POOL}/{name} (priority {priority})")


def deploy(recipe: Path | None) -> None:
    """Applies prefect.yaml."""
    environment = dict(os.environ) | ({"SPINFLOW_RECIPE": str(recipe.resolve())} if recipe else {})
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"error: prefect deploy failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    with get_client(sync_client=True) as client:
        for deployment in client.read_deployments():
            if deployment.work_pool_name == POOL:
                flow = client.read_flow(deployment.flow_id)
                print(f"deployment   {flow.name}/{deployment.name}")


if __name__ == "__main__":
    main()
