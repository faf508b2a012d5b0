"""An engine on a node, as the pool sees it; the requests of its shards go through its actor, so its server stays on loopback there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from spin_core.cluster.disk import RunHome
from spin_core.cluster.host import MakeEngine
from spin_core.cluster.lease import Lease
from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Answer, OnAnswer, Prompt, Sampler
from spin_core.runtime.errors import BadInput, ChildCrash
from spin_core.runtime.machine import side_by_side
from spin_core.runtime.progress import emit, tell
from spin_core.store import Ref


class RayEngine:
    """An engine for `sampler` on the GPUs of `lease`. The constructor returns once it is up."""

    def __init__(
        self, lease: Lease, make: MakeEngine, sampler: Sampler, log: Path, part: int, parts: int, home: RunHome | None = None
    ) -> None:
        """On a lease that has its place."""
        self._lease = lease
        try:
            tell("engines", f"engine {part + 1} on {lease.where}")
            sampler = replace(sampler, model=bare(sampler.model))
            self.window, self.address = lease.follow("start", make, sampler, log, part, parts, home, on=emit)
        except BaseException:
            lease.end()
            raise

    @property
    def node(self) -> str:
        """Where what must be beside it has to run."""
        return self._lease.where.node

    @property
    def where(self) -> str:
        """For people."""
        return str(self._lease.where)

    def sample(self, prompts: Sequence[Prompt], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        """See `Engine.sample`."""
        answers: Any = self._lease.follow("sample", list(prompts), ends, on=lambda told: on_answer(*told))
        found: list[Answer] = answers
        return found

    def alive(self) -> bool:
        """Whether its node and its engine can take work."""
        try:
            return bool(self._lease.ask("alive"))
        except ChildCrash:
            return False

    def close(self) -> None:
        """Ends it and gives its GPUs back."""
        self._lease.end()


def bare(ref: Ref) -> Ref:
    """Without the run's connection to an object store: a node has its own."""
    return replace(ref, source=None)


def bring(leases: Collection[Lease], model: Ref, home: RunHome) -> None:
    """Has a model on the nodes of these leases, each its own copy. Raises BadInput where they keep it under different paths."""
    folders = dict[str, str]()

    def one(lease: Lease) -> None:
        folders[lease.where.name] = str(lease.follow("bring", model, home, on=emit))

    side_by_side([partial(one, lease) for lease in leases])
    if len({*folders.values()}) > 1:
        told = ", ".join(f"{folder} on {name}" for name, folder in sorted(folders.items()))
        remedy = "set SPINFLOW_CACHE to the same folder on all nodes, or take a home on a disk that they share"
        raise BadInput(f"the workers of an engine over several nodes read its model under one path, and it is {told}", remedy=remedy)
