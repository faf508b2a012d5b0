"""The stage `reference`: the log-probs of both answers under one frozen model, once, as an artifact.

Training then holds no second model. The official trainer runs a frozen copy at every step instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.contracts.rows import SCORES_OF, TEST_FILE, TRAIN_FILE
from spin_core.recipe import TrainingSettings
from spin_core.runtime import devices
from spin_core.runtime.launcher import Launcher
from spin_core.store import Ref, Spec

STAGE_VERSION = 4


@dataclass(frozen=True)
class Score:
    """`scores.parquet` (train) and `test_scores.parquet` (held-out) of `pairs` under `model`, or one of them, row by row.

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

    def run(self, out: Path, on: Launcher) -> None:
        """Scores in a child, on one device."""
        job: dict[str, Any] = {"model": str(self.model.path), "out": str(out), "attention": self.settings.attention}
        job |= {"precision": devices.precision(self.settings.precision), "backend": self.settings.backend}
        job["files"] = {str(self.pairs.path / {"train": TRAIN_FILE, "test": TEST_FILE}[split]): SCORES_OF[split] for split in self.splits}
        job["quantize"] = {SCORES_OF["train"]: self._quantize} if self._quantize else {}
        on.job("spin_core.scoring.job", job, f"score-{self.spec().digest}", self.label, group=devices.visible()[:1])
