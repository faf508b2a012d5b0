"""The stage `model` of a θ_0 that SFT makes: TRL's `SFTTrainer`, the best epoch by the validation rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from spin_core.recipe import SftSettings
from spin_core.recipe.identity import identity
from spin_core.runtime import devices
from spin_core.runtime.launcher import Launcher
from spin_core.store import Ref, Spec
from spin_core.training.launch import launcher

STAGE_VERSION = 1
_JOB = "spin_core.sft.job"


@dataclass(frozen=True)
class Warm:
    """Trains `model` on the human answers of the encoded train rows; a run that was killed goes on from its last epoch."""

    settings: SftSettings
    precision: Literal["auto", "fp32", "bf16"]  # of training, as sharding is
    sharding: str
    model: Ref
    encoded: Ref
    label: str = "warm start (SFT)"

    def spec(self) -> Spec:
        """The settings but for those of speed, with the precision resolved."""
        params = {"sft": identity(self.settings), "training": {"precision": devices.precision(self.precision)}}
        return Spec("model", STAGE_VERSION, params, (self.model, self.encoded))

    def run(self, out: Path, on: Launcher) -> dict[str, Any]:
        """Trains on all devices."""
        job = {
            "model": str(self.model.folder),
            "encoded": str(self.encoded.folder),
            "sft": self.settings.model_dump(),
            "precision": devices.precision(self.precision),
            "work": str(on.work_dir(self)),
            "out": str(out),
        }
        on.together(_JOB, job, f"sft-{self.spec().digest}", "warm start", command=partial(launcher, sharding=self.sharding))
        lines = [json.loads(line) for line in (out / "sft.jsonl").read_text().splitlines()]
        curve = {round(line["epoch"]): line["eval_loss"] for line in lines if "eval_loss" in line}
        best = min(curve, key=lambda epoch: (curve[epoch], epoch))
        told = ", ".join(f"{loss:.3f}" for _, loss in sorted(curve.items()))
        message = f"epoch {best} of {max(curve)}: validation NLL {told} nats a token, the first without SFT"
        speed = {name: lines[-1][name] for name in ("rows_per_s",) if name in lines[-1]}
        return {"epoch": best, "nll": curve[best], "nll_start": curve[0], "message": message} | speed
