"""An engine on a node, as the pool sees it; the requests of its shards go through its actor, so its server stays on loopback there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spin_core.cluster.disk import RunHome
from spin_core.cluster.host import MakeEngine
from spin_core.cluster.lease import Lease
from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Answer, OnAnswer, Prompt, Sampler
from spin_core.runtime.errors import ChildCrash
from spin_core.runtime.progress import emit, tell


class RayEngine:
    """An engine for `sampler` on the GPUs of `lease`. The constructor returns once it is up."""

    def __init__(
        self, lease: Lease, make: MakeEngine, sampler: Sampler, log: Path, part: int, parts: int, home: RunHome | None = None
    ) -> None:
        """On a lease that has its place."""
        self._lease = lease
        try:
            tell("engines", f"engine {part + 1} on {lease.where}")
            self.window, self.address = lease.follow("start", make, _bare(sampler), log, part, parts, home, on=emit)
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


def _bare(sampler: Sampler) -> Sampler:
    """Without the run's connection to an object store: a node has its own."""
    return replace(sampler, model=replace(sampler.model, source=None))
