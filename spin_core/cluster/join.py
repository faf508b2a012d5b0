"""Joining a cluster: where it is, and what Ray must leave as it was."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING

from spin_core.recipe import ClusterSettings
from spin_core.runtime.errors import BadInput, SpinflowError
from spin_core.runtime.progress import tell
from spin_core.store import Store

if TYPE_CHECKING:
    from spin_core.cluster.machine import ClusterMachine

_ANSWER_S = 10.0
VARIABLE = "SPINFLOW_CLUSTER"
_START = "start it with `ray start --head`, and this machine with `ray start --address=HEAD:6379`, each with the same Python and Ray"
_TOKEN = "set RAY_AUTH_MODE=token here, and have what its head has in ~/.ray/auth_token there, or in RAY_AUTH_TOKEN"


def address(settings: ClusterSettings | None) -> str:
    """The cluster that a recipe or the environment names; empty where neither does."""
    return settings.address if settings else os.environ.get(VARIABLE, "")


@contextmanager
def joined(store: Store, where: str) -> Iterator[ClusterMachine | None]:
    """The cluster at an address until the block ends, or None where that is empty: then Ray is never imported.

    Raises BadInput where Ray is not installed, SpinflowError where no cluster answers.
    """
    if not where:
        yield None
        return
    if not find_spec("ray"):
        raise BadInput(f"cluster: {where}: Ray is not installed", remedy="pip install 'spinflow[cluster]', or leave it out")
    _connect(where)
    from spin_core.cluster.head import Head
    from spin_core.cluster.machine import ClusterMachine
    from spin_core.cluster.room import Nodes

    head = Head()
    machine = ClusterMachine(store, Nodes(head.there))
    gpus = machine.gpus()
    tell("cluster", f"{len(gpus)} nodes with {sum(gpus)} GPUs at {where}")
    try:
        yield machine
    finally:
        machine.close()
        head.leave()
        _leave()


def _connect(where: str) -> None:
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # else a late call, after the end, would start a cluster of its own
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # nodes have their own environment, whatever started the flow
    import ray
    from ray.exceptions import RayError

    # what it prints of a lost node is twenty lines of its raylet's log, and there is no switch; ours is one line, of the stage
    vars(ray._private.worker)["print_to_stdstream"] = lambda *args, **kwargs: None
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with _told() as told:
            if where != "auto":  # Ray itself would try for minutes
                host, _, port = where.rpartition(":")
                socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()
            ray.init(address=where, namespace="spinflow", log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        why = " ".join(str(error).split())[:200]
        if "AuthToken" in told():
            raise SpinflowError(f"cluster: the one at {where} wants its token", remedy=_TOKEN) from None
        raise SpinflowError(f"cluster: none at {where} that can be joined ({why})", remedy=_START) from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)  # Ray puts its own in the place of the flow's


@contextmanager
def _told() -> Iterator[Callable[[], str]]:
    """Keeps what Ray's library writes at the terminal, a line a second while it cannot join, for whoever wants to know why."""
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as file:
        found = b""
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: found.decode(errors="replace")
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)
            file.seek(0)
            found = file.read()


def _leave() -> None:
    import ray

    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    ray.shutdown()
    if main:
        signal.signal(signal.SIGTERM, before)
