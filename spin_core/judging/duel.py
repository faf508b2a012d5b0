"""The stage `duel`: a language model's preference between two players' answers to the held-out rows."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.recipe import JudgeSettings
from spin_core.recipe.identity import identity
from spin_core.runtime.launcher import Launcher
from spin_core.store import Ref, Spec

STAGE_VERSION = 1


@dataclass(frozen=True)
class Duel:
    """Writes a table a split with the share of the new player's wins and both answers' lengths a row, and duel.json.

    Every row is asked twice, each player's answer once in the first place. An answer of the judge that names neither is a refusal:
    it is counted, and its row is decided by the other order, or left out.
    """

    settings: JudgeSettings
    new: int  # t of the players
    old: int
    prompts: Ref
    new_answers: Mapping[str, Sequence[Ref]]  # the first ones, by split
    old_answers: Mapping[str, Sequence[Ref]]
    turn: str = ""  # for people

    @property
    def label(self) -> str:
        """See `Stage`."""
        return f"{self.turn} · a judge compares θ_{self.new} with θ_{self.old}"

    def spec(self) -> Spec:
        """Which judge, and whose answers."""
        params = {"judge": identity(self.settings), "splits": sorted(self.new_answers)}
        shards = (shard for side in (self.new_answers, self.old_answers) for split in sorted(side) for shard in side[split])
        return Spec("duel", STAGE_VERSION, params, (self.prompts, *shards))

    def run(self, out: Path, on: Launcher) -> dict[str, Any]:
        """Asks in a child; what was asked of the judge is told."""
        job: dict[str, Any] = {"prompts": str(self.prompts.folder), "out": str(out), "settings": self.settings.model_dump()}
        for name, side in (("new", self.new_answers), ("old", self.old_answers)):
            job[name] = {split: [str(shard.folder) for shard in shards] for split, shards in side.items()}
        env = {"JUDGE_KEY": os.environ.get(self.settings.api_key_env, "")}
        on.job("spin_core.judging.duel_job", job, f"duel-{self.spec().digest}", self.label, env=env)
        counts: dict[str, Any] = json.loads((out / "duel.json").read_text())
        tokens = counts["prompt_tokens"] + counts["answer_tokens"]
        return counts | {"message": f"{counts['asked']:,} questions, {counts['refused']:,} refused, {tokens:,} tokens"}
