"""What the nodes of a cluster have room for, and when a wait for room has become one without hope."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import ray

from spin_core.generation.engine import Ended
from spin_core.runtime.errors import SpinflowError

_LOOK_S = 2.0
_HOPE_S = 600.0  # an autoscaler's new node takes minutes
_GIB = 2**30


@dataclass(frozen=True)
class Node:
    """A living node that has GPUs."""

    gpus: int
    memory: int  # bytes that its Ray may give away


@dataclass(frozen=True)
class Need:
    """What one engine or child asks of a node; `wide` asks for GPUs of one node or several."""

    gpus: int
    memory: int = 0  # bytes of RAM; 0 where nobody knows
    wide: bool = False

    def fits(self, nodes: Sequence[Node]) -> int:
        """How many of it these nodes hold at once, with nothing else on them."""
        if self.wide:
            return sum(node.gpus for node in nodes) // self.gpus
        return sum(min(node.gpus // self.gpus, node.memory // self.memory if self.memory else node.gpus) for node in nodes)

    def __str__(self) -> str:
        gpus = f"{self.gpus} GPU{'s' * (self.gpus > 1)}"
        return f"{gpus} and {self.memory / _GIB:.1f} GiB of memory" if self.memory else gpus


class Nodes:
    """The nodes that there are now."""

    def __init__(self, there: Callable[[], bool]) -> None:
        self._there = there  # whether the head can be asked
        self._lock, self._seen, self._nodes = threading.Lock(), 0.0, list[Node]()

    def __call__(self) -> list[Node]:
        """Those with GPUs, as they were two seconds ago at most: everybody who waits looks at them."""
        with self._lock:
            if time.monotonic() - self._seen > _LOOK_S and self._there():
                found = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                self._nodes = [Node(int(one["GPU"]), int(one.get("memory", 0))) for one in found if one.get("GPU", 0) >= 1]
                self._seen = time.monotonic()
            return self._nodes

    def hoped(self, what: str, need: Need, ended: Ended, remedy: str) -> Ended:
        """`ended`, for a wait; raises SpinflowError once nodes have been there for minutes of which none could ever hold `need`.

        Where no node is there at all, the wait is for the first.
        """
        since = 0.0

        def check() -> bool:
            nonlocal since
            if not self._hopeless(need):
                since = 0.0
            else:
                since = since or time.monotonic()
                if time.monotonic() - since > _HOPE_S:
                    raise SpinflowError(f"{what} needs {need}, and {self.lack(need)}", remedy=remedy)
            return ended()

        return check

    def _hopeless(self, need: Need) -> bool:
        """Whether there are nodes, and none of them could hold it, were it idle."""
        return bool(self()) and not need.fits(self())

    def lack(self, need: Need) -> str:
        """Why there is no place for it, for people: what is missing now, or on every node for ever."""
        nodes = self()
        if not self._hopeless(need):
            return f"{need} are not free" if need.wide else f"no node has {need} free"
        if need.wide:
            return f"all nodes together have {sum(node.gpus for node in nodes)}"
        best = max(nodes, key=lambda node: (node.gpus >= need.gpus, node.memory))
        return f"no node has: the best of {len(nodes)} has {Need(best.gpus, best.memory)}"


def widest(gpus: Sequence[int]) -> tuple[int, int]:
    """Nodes, and GPUs of each, that use most of them; every node of a training has as many. (1, 1) where there is none yet."""
    wholes = [(sum(has >= size for has in gpus), size) for size in sorted(set(gpus), reverse=True)]
    return max(wholes, key=lambda whole: whole[0] * whole[1], default=(1, 1))
