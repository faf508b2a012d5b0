"""The stage `model` of θ_{t+1}: the trainer, over several devices with `accelerate launch`."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from spin_core.recipe import TrainingSettings
from spin_core.recipe.identity import identity
from spin_core.runtime import devices
from spin_core.runtime.launcher import Launcher
from spin_core.store import Ref, Spec
from spin_core.training.launch import launcher

STAGE_VERSION = 6
_JOB = "spin_core.training.job"
_NOT_OURS = {"start", "line_search"}  # what is trained on says the first; the second comes after training


@dataclass(frozen=True)
class Train:
    """Trains θ_{t+1} from `model`, θ_t or θ_0; resumes from the last checkpoint of a run that was killed.

    With `choose_epoch` the weights after each epoch but the last lie in epochs/<number>/ beside the last ones.
    """

    settings: TrainingSettings
    model: Ref
    pairs: Ref
    reference: Ref
    turn: str = ""  # for people
    steps_before: int = 0  # of the campaign's iterations before, for `training.report_to`

    @property
    def label(self) -> str:
        """See `Stage`."""
        return f"{self.turn} · fine-tune".removeprefix(" · ")

    def spec(self) -> Spec:
        """The settings but for those of speed and of other stages, with the precision resolved."""
        looks = set() if self.settings.early_stop else {"validate_steps"}  # only to look changes nothing
        settings = identity(self.settings, without={"precision", *looks, *_NOT_OURS}) | {
            "precision": devices.precision(self.settings.precision)
        }
        return Spec("model", STAGE_VERSION, {"training": settings}, (self.model, self.pairs, self.reference))

    def run(self, out: Path, on: Launcher) -> dict[str, Any]:
        """Trains on all devices."""
        campaign = {"name": on.campaign or "spinflow", "home": str(on.store.home), "place": on.store.url}
        job = {
            "tracked": {"campaign": campaign, "first": self.steps_before},
            "model": str(self.model.folder),
            "pairs": str(self.pairs.folder),
            "reference": str(self.reference.folder),
            "training": self.settings.model_dump() | {"precision": devices.precision(self.settings.precision)},
            "work": str(on.work_dir(self)),
            "out": str(out),
        }
        name, command = f"{self.turn} · training".removeprefix(" · "), partial(launcher, sharding=self.settings.sharding)
        on.together(_JOB, job, f"finetune-{self.spec().digest}", name, command=command)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        speed = statistics.harmonic_mean(line["pairs/s"] for line in lines)  # steps hold equal numbers of pairs
        return {"steps": lines[-1]["step"], "loss": lines[-1]["loss"], "beta": lines[-1]["beta"], "pairs_per_s": speed}
