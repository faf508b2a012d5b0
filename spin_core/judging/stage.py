"""The stage `judged`: one evaluator's figures of one player, on every split of held-out rows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.judging.evaluators import evaluator
from spin_core.runtime.errors import BadInput
from spin_core.runtime.launcher import Launcher
from spin_core.store import Ref, Spec
from spin_core.store.files import content_digest

STAGE_VERSION = 1


@dataclass(frozen=True)
class Judge:
    """Writes figures.json, and a table a split with a value a row of each figure.

    Its parents are what the evaluator needs: the player's answers, or its log-probs of the held-out pairs. A file of the user's
    counts by its content.
    """

    evaluator: str  # a name, or FILE.py:FUNCTION
    player: int  # t of θ_t
    prompts: Ref
    answers: Mapping[str, Sequence[Ref]]  # the shards of each split
    pairs: Ref
    scored: Ref
    turn: str = ""  # for people

    @property
    def label(self) -> str:
        """See `Stage`."""
        return f"{self.turn} · judge θ_{self.player} by {self.name}"

    @property
    def name(self) -> str:
        """The evaluator for people and for links."""
        return self.evaluator.rpartition(":")[2]

    def spec(self) -> Spec:
        """The evaluator and what it looks at."""
        found = evaluator(self.evaluator)
        params: dict[str, Any] = {"evaluator": self.name, "splits": sorted(self.answers)}
        if found.version > 1:
            params["version"] = found.version
        if self.evaluator != self.name:
            params["code"] = self._code()
        if found.needs == "scores":
            return Spec("judged", STAGE_VERSION, params, (self.pairs, self.scored))
        shards = (shard for split in sorted(self.answers) for shard in self.answers[split])
        return Spec("judged", STAGE_VERSION, params, (self.prompts, *shards))

    def _code(self) -> str:
        file = Path(self.evaluator.rpartition(":")[0])
        try:
            return content_digest(file)
        except OSError as error:
            raise BadInput(f"evaluation.custom: {file} cannot be read: {os.strerror(error.errno or 0)}") from None

    def run(self, out: Path, on: Launcher) -> None:
        """Judges in a child: what it runs may be anybody's code."""
        place = str(Path(self.evaluator).absolute()) if self.evaluator != self.name else self.evaluator
        job: dict[str, Any] = {"evaluator": place, "prompts": str(self.prompts.folder), "out": str(out)}
        job |= {"pairs": str(self.pairs.folder), "scored": str(self.scored.folder)}
        job["answers"] = {split: [str(shard.folder) for shard in shards] for split, shards in self.answers.items()}
        on.job("spin_core.judging.job", job, f"judge-{self.spec().digest}", self.label)
