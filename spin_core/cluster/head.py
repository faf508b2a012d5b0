"""The head of the cluster, watched: where it goes, Ray would end this process itself, a minute later and in a stack trace."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.exceptions import RayError

from spin_core.runtime import process
from spin_core.runtime.progress import tell

_LOOK_S = 2.0
_GONE_S = 40.0  # Ray waits for 60
_SAY_S = 3.0  # until what is told has reached the UI
_REMEDY = "start the head and the nodes, and run again to continue"


class Head:
    """Of the cluster that this process is connected to. When it is gone for good, so is this process, with one line.

    A head that is started again knows nothing of its nodes, nor they of it: its cluster is another one.
    """

    def __init__(self) -> None:
        self._address = str(ray.get_runtime_context().gcs_address)
        self._cluster = self._answers()
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def there(self) -> bool:
        """Whether it answers now; else Ray would wait for it, or abort."""
        return bool(self._cluster == self._answers())

    def leave(self) -> None:
        """Nobody needs it any more."""
        self._over.set()

    def _answers(self) -> Any:
        """The id of the cluster whose head answers at the address; None where nobody does."""
        host, _, port = self._address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=_LOOK_S).close()  # Ray itself would try for a minute
            return GcsClient(address=self._address).cluster_id
        except (OSError, RuntimeError, RayError):
            return None

    def _watch(self) -> None:
        seen = time.monotonic()
        while not self._over.wait(_LOOK_S):
            found = self._answers()
            if found == self._cluster:
                seen = time.monotonic()
            elif found is not None:
                self._end("was started anew")
            elif time.monotonic() - seen > _GONE_S:
                self._end(f"has not answered for {_GONE_S:.0f} s")

    def _end(self, why: str) -> None:
        text = f"the cluster's head at {self._address} {why}; {_REMEDY}"
        tell("cluster", f"its head {why}")
        if not self._over.wait(_SAY_S):
            process.leave(f"error: {text}", 1)
