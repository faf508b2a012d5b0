"""The stage `pairs`: shards joined with the human answers, with proof of completeness, carry-over and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.runtime.launcher import Launcher
from spin_core.store import Ref, Spec

STAGE_VERSION = 5


@dataclass(frozen=True)
class Gather:
    """Joins the shards with the human answers into the iteration's pairs.

    `carried` are the pairs of earlier iterations, the last one first: those of their own opponents, not what they carried
    themselves, are mixed into train, as in the paper's iter0+1, iter1+2, …. Pairs with one answer on both sides, whatever ended
    it, are left out of train but for `keep_identical`: most objectives have no gradient on them. Raises Corrupt, after setting
    them aside, where files do not match their checksums.
    """

    iteration: int
    prompts: Ref
    encoded: Ref
    train: tuple[Ref, ...]
    test: tuple[Ref, ...]
    carried: tuple[Ref, ...] = ()
    keep_identical: bool = False
    validation: tuple[Ref, ...] = ()  # shards of the rows that choices are made on, where there are any

    @property
    def label(self) -> str:
        """See `Stage`."""
        return f"iter-{self.iteration} · pairs"

    @property
    def _parents(self) -> tuple[Ref, ...]:
        return (self.prompts, self.encoded, *self.train, *self.test, *self.validation, *self.carried)

    def spec(self) -> Spec:
        """The iteration, which each row names, and what is joined."""
        params: dict[str, Any] = {"iteration": self.iteration} | ({"keep_identical": True} if self.keep_identical else {})
        return Spec("pairs", STAGE_VERSION, params, self._parents)

    def run(self, out: Path, on: Launcher) -> None:
        """Joins in a child, so that the flow's memory stays small."""
        on.store.verify(*self._parents)
        job: dict[str, Any] = {"iteration": self.iteration, "prompts": str(self.prompts.folder), "encoded": str(self.encoded.folder)}
        job |= {
            split: [str(shard.folder) for shard in shards]
            for split, shards in (("train", self.train), ("test", self.test), ("validation", self.validation))
        }
        parents = {parent["kind"]: parent["digest"] for parent in self.encoded.manifest["parents"]}
        job["model"] = str(on.store.find("model", parents["model"]).folder) if "model" in parents else None
        job |= {"carried": [str(pairs.folder) for pairs in self.carried], "out": str(out), "keep_identical": self.keep_identical}
        on.job("spin_core.pairs.job", job, f"gather-{self.spec().digest}", f"iter-{self.iteration} · gathering the pairs")
