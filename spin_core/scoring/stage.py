"""The stage `reference`: the log-probs of both answers under one frozen model, once, as an artifact.

Training then holds no second model. The official trainer runs a frozen copy at every step instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.contracts.rows import PAIRS_OF, SCORES_OF
from spin_core.contracts.tables import count_rows
from spin_core.recipe import TrainingSettings
from spin_core.runtime import devices
from spin_core.runtime.launcher import Launcher
from spin_core.runtime.memory import fp32_bytes
from spin_core.scoring.scores import join_shards, scoring_seconds, surprise
from spin_core.store import Ref, Spec
from spin_core.store.shares import require_whole

STAGE_VERSION = 6
_JOB = "spin_core.scoring.job"
# pairs that one device scores at a time: what a crash costs, and how unequally devices can end. At any number of devices the
# same, so that a run can go on with another
SHARD_PAIRS = 1024


@dataclass(frozen=True)
class Score:
    """The scores of some splits of `pairs` under `model`, row by row, in the files of `SCORES_OF`.

    Beside the train scores lies what they say about β, see `scoring.beta`.
    """

    settings: TrainingSettings  # precision and quantisation are those of training
    model: Ref
    pairs: Ref
    turn: str = ""  # for people
    splits: tuple[str, ...] = ("train", "test")

    @property
    def label(self) -> str:
        """See `Stage`."""
        return f"{self.turn} · score {' and '.join(self.splits)}".removeprefix(" · ")

    @property
    def _quantize(self) -> str | None:
        """What training starts from is rounded; held-out rows are for the full model."""
        return self.settings.lora.quantize if self.settings.lora and "train" in self.splits else None

    def spec(self) -> Spec:
        """The precision, and the splits."""
        params: dict[str, Any] = {"splits": sorted(self.splits), "training": {"precision": devices.precision(self.settings.precision)}}
        if self._quantize:
            params["training"]["lora"] = {"quantize": self._quantize}
        return Spec("reference", STAGE_VERSION, params, (self.model, self.pairs))

    def run(self, out: Path, on: Launcher) -> dict[str, Any]:
        """Scores in shards that survive a crash, with a child on every device; they take shards as they get on."""
        shards = self._shards(on.work_dir(self))
        missing = [shard for shard in shards if not Path(shard["file"]).exists()]
        total = sum(shard["stop"] - shard["start"] for shard in shards)
        todo = sum(shard["stop"] - shard["start"] for shard in missing)
        job: dict[str, Any] = {"model": str(self.model.folder), "attention": self.settings.attention, "backend": self.settings.backend}
        job |= {"precision": devices.precision(self.settings.precision), "shards": missing, "total": total, "done": total - todo}
        on.spread(_JOB, job, f"score-{self.spec().digest}", self.label, most=len(missing), memory=fp32_bytes(self.model))
        files = [Path(shard["file"]) for shard in shards]
        on.collect(files)
        require_whole(files, self.label)
        for split in self.splits:
            of_split = [Path(shard["file"]) for shard in shards if shard["split"] == split]
            join_shards(of_split, out / SCORES_OF[split])
            if split == "train":
                surprise(of_split).write(out)
        seconds = scoring_seconds(files)
        return {"pairs_per_s": min(on.device_count, len(shards)) * total / max(seconds, 1e-9)}

    def _shards(self, work: Path) -> list[dict[str, Any]]:
        """Ranges of rows, and the file that each one's scores go to."""
        found = []
        for split in self.splits:
            source = self.pairs.path / PAIRS_OF[split]
            quantize = self._quantize if split == "train" else None
            rows = count_rows(source)
            for start in range(0, rows, SHARD_PAIRS):
                stop = min(rows, start + SHARD_PAIRS)
                shard: dict[str, Any] = {"split": split, "source": str(source), "start": start, "stop": stop, "quantize": quantize}
                found.append(shard | {"file": str(work / f"{split}-{start:09}-{stop:09}.parquet")})
        return found
