"""The stage `model` of a θ_{t+1} that is chosen: a line search between θ_t and what was trained, and the best epoch.

Everything is chosen on validation rows: by the mean NLL a token of their human answers, and where they carry checks by how many of the
model's own answers would be the human ones. They are never trained on, and nothing that is reported is measured on them.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spin_core.contracts.rows import CHOICE, EPOCHS
from spin_core.recipe import TrainingSettings
from spin_core.runtime import devices
from spin_core.runtime.launcher import Launcher
from spin_core.runtime.memory import fp32_bytes
from spin_core.selection.choice import best, candidates, content, told, weigh
from spin_core.store import Ref, Spec
from spin_core.store.shares import require_whole

STAGE_VERSION = 2
_JOB = "spin_core.selection.job"


@dataclass(frozen=True)
class Choose:
    """θ_{t+1} from the models on the way from θ_t (`start`) to `trained`: a whole model, and choice.json with every candidate.

    With `line_search`, γ = 0 is one of them: then θ_t stays, and nothing was won.
    """

    settings: TrainingSettings
    start: Ref
    trained: Ref
    encoded: Ref
    prompts: Ref
    turn: str = ""  # for people

    @property
    def label(self) -> str:
        """See `Stage`."""
        return f"{self.turn} · choose".removeprefix(" · ")

    def spec(self) -> Spec:
        """What is chosen from; the precision is that of scoring."""
        training: dict[str, Any] = {"precision": devices.precision(self.settings.precision)}
        if self.settings.gammas:
            training["line_search"] = sorted({*self.settings.gammas, 1.0})
        if self.settings.choose_epoch:
            training["choose_epoch"] = True
        return Spec("model", STAGE_VERSION, {"training": training}, (self.start, self.trained, self.encoded, self.prompts))

    def run(self, out: Path, on: Launcher) -> dict[str, Any]:
        """Scores the candidates, with a child on every device; those that are scored survive a crash. A last child writes the best."""
        work, found = on.work_dir(self), candidates(self._epochs(), self.settings.gammas)
        files = [work / f"{candidate.name}.parquet" for candidate in found]
        rows = self.encoded.path / "validation.parquet"
        common: dict[str, Any] = {"start": str(self.start.folder), "trained": str(self.trained.folder)}
        missing = [asdict(one) | {"file": str(file)} for one, file in zip(found, files, strict=True) if not file.exists()]
        job = common | {
            "rows": str(rows),
            "candidates": missing,
            "total": len(found),
            "precision": devices.precision(self.settings.precision),
        }
        job |= {"attention": self.settings.attention, "backend": self.settings.backend}
        job["done"] = len(found) - len(missing)
        on.spread(_JOB, job, f"choose-{self.spec().digest}", self.label, most=len(missing), memory=fp32_bytes(self.start))
        on.collect(files)
        require_whole(files, self.label)
        tokens_V = pc.list_value_length(pq.read_table(rows, columns=["real_ids"])["real_ids"]).to_numpy().astype(np.int64)
        weighed = weigh(found, np.stack([pq.read_table(file)["real_logp"].to_numpy() for file in files]), tokens_V)
        right_counts = self._checked()
        taken = best(weighed, bool(self.settings.gammas), right_counts)
        (out / CHOICE).write_text(json.dumps(content(weighed, taken, len(tokens_V), int(tokens_V.sum())), indent=1))
        take = common | {"take": asdict(taken.candidate), "out": str(out)}
        on.job(_JOB, take, f"choose-{self.spec().digest}-write", f"{self.label}: writing")
        facts = {"nll": taken.nll, "nll_start": weighed[0].nll, "gain": taken.gain, "error": taken.error, "candidates": len(found)}
        facts |= {"exact": taken.exact, "exact_start": weighed[0].exact}
        return asdict(taken.candidate) | facts | {"message": told(weighed, taken, len(tokens_V), right_counts)}

    def _checked(self) -> bool:
        """Whether it can be told of these rows which answers are right."""
        return bool(pq.read_table(self.prompts.file("validation.parquet"), columns=["check"])["check"].is_valid().to_numpy().any())

    def _epochs(self) -> list[int]:
        """The epochs before the last that training kept a model of."""
        if not self.settings.choose_epoch:
            return []
        return sorted({int(name.split("/")[1]) for name in self.trained.manifest["files"] if name.startswith(f"{EPOCHS}/")})


def nothing_won(model: Ref) -> bool:
    """Whether a model is one that was chosen, and is θ_t."""
    return bool(model.facts.get("gamma") == 0.0)
