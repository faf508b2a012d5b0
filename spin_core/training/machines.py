"""Several machines train one model: one of them runs the campaign, the others join each training that it starts.

    NNODES=2 NODE_RANK=0 MASTER_ADDR=host-a spinflow run recipe.yaml --home /shared         # on host-a
    NNODES=2 NODE_RANK=1 MASTER_ADDR=host-a python -m spin_core.training.machines /shared   # on the other, until it is ended

All have the same number of GPUs and the home on a shared disk, where the first leaves an invitation while it trains.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from spin_core.runtime import devices, leftovers, process, surroundings
from spin_core.runtime.errors import BadInput, SpinflowError
from spin_core.training.launch import Machines, launcher

_INVITATION = "join.json"
_POLL_S = 0.5


@contextmanager
def invited(machines: Machines, folder: Path, training: Mapping[str, Any]) -> Iterator[Machines]:
    """While the block runs, the other machines are asked to join `training`; a new port each time keeps late ones out."""
    if machines.count == 1:
        yield machines
        return
    if machines.rank:
        raise BadInput(
            f"NODE_RANK={machines.rank}: the campaign runs on the machine with NODE_RANK=0",
            remedy="here, run python -m spin_core.training.machines with the campaign's home",
        )
    leader = replace(machines, port=machines.port or _free_port())
    file = folder / _INVITATION
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps({**training, "machines": asdict(leader), "attempt": uuid4().hex}))
    os.replace(temporary, file)
    try:
        yield leader
    finally:
        file.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def follow(home: Path) -> None:
    """Joins the trainings under `home`, one after the other, until this process is ended."""
    here, last = Machines.of(os.environ), ""
    if here.rank == 0:
        raise BadInput("no campaign to follow", remedy="set NNODES, NODE_RANK (from 1 on) and MASTER_ADDR")
    print(f"machine {here.rank} of {here.count} waits for trainings under {home}", flush=True)
    while True:
        for file in (home / "work").glob(f"*/{_INVITATION}"):
            invitation = _read(file)
            if invitation and invitation["attempt"] != last:
                last = invitation["attempt"]
                _join(invitation, file, here, home / "logs" / f"{file.parent.name}-machine-{here.rank}.log")
        time.sleep(_POLL_S)


def _join(invitation: dict[str, Any], file: Path, here: Machines, log: Path) -> None:
    group = devices.visible()
    if len(group) != invitation["gpus"]:
        raise BadInput(
            f"{len(group)} GPUs here, {invitation['gpus']} on machine 0", remedy="set CUDA_VISIBLE_DEVICES so that they are equal"
        )
    place = replace(here, **{name: invitation["machines"][name] for name in ("count", "port")})
    job = file.parent / f"machine-{here.rank}.json"
    job.write_text(json.dumps(invitation["job"]))
    command = [sys.executable, *launcher(len(group), invitation["sharding"], place), "-m", invitation["module"], str(job)]
    print(f"joining {file.parent.name}, log: {log}", flush=True)
    with devices.hold(group, purpose="training") as held:
        child = process.spawn(command, log, devices.environment(group), fds=held.fds)
        while child.poll() is None and (_read(file) or {}).get("attempt") == invitation["attempt"]:
            time.sleep(_POLL_S)
        process.end(child)  # the campaign's machine has ended this training, well or not
    print(f"{file.parent.name} ended", flush=True)


def _read(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return None
    return found


if __name__ == "__main__":
    leftovers.guard()
    try:
        follow(surroundings.expanded(Path(sys.argv[1])))
    except (SpinflowError, KeyboardInterrupt) as error:
        process.end_all()
        sys.exit(str(error) or None)
