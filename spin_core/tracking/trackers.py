"""TensorBoard, Weights & Biases, trackio and MLflow, each as a run that is opened again in every iteration of a campaign.

Their libraries are imported where they are opened: none is needed otherwise, and all are loaded in children only.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from spin_core.runtime.progress import Progress, print_event

PROJECT = "spinflow"  # or what the tracker's own environment variable says


@dataclass(frozen=True)
class Campaign:
    """Whose run it is. The id is the home's and the name's: the same in every iteration, another one for somebody else's campaign."""

    name: str
    home: str  # the folder on this machine
    place: str = ""  # of the home, where that is not a folder: the same on all machines

    @property
    def id(self) -> str:
        """Letters, digits and dashes."""
        digest = hashlib.sha256(f"{self.place or self.home}\n{self.name}".encode()).hexdigest()
        return f"{re.sub(r'[^A-Za-z0-9]+', '-', self.name).strip('-')}-{digest[:8]}"

    def folder(self, tracker: str) -> Path:
        """Where a tracker that writes files writes them."""
        found = Path(self.home) / "logs" / tracker
        found.mkdir(parents=True, exist_ok=True)
        return found

    def as_dict(self) -> dict[str, Any]:
        """For a job's file."""
        return asdict(self)


class Tracker(Protocol):
    """A campaign's run in one tracker."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Figures under `training/…` at a step of the campaign, or under `evaluation/…` at t of θ_t."""
        ...

    def close(self) -> None:
        """Writes what waits."""
        ...


class TensorBoard:
    """Event files under <home>/logs/tensorboard/<campaign>, or in TENSORBOARD_LOGGING_DIR."""

    def __init__(self, campaign: Campaign, again_from: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = Path(os.environ.get("TENSORBOARD_LOGGING_DIR") or campaign.folder("tensorboard")) / campaign.name
        self._writer: Any = SummaryWriter(str(folder), purge_step=again_from)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class Wandb:
    """A run that is resumed by its id; WANDB_PROJECT and the like hold."""

    def __init__(self, campaign: Campaign, again_from: int | None) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._run = wandb.init(project=project, id=campaign.id, name=campaign.name, resume="allow", dir=str(campaign.folder("wandb")))
        for group in ("training", "evaluation"):  # each has an axis of its own, which may begin again where a killed training does
            self._run.define_metric(f"{group}/step")
            self._run.define_metric(f"{group}/*", step_metric=f"{group}/step")

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._run.log({**figures, f"{_group(figures)}/step": step})

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


class Trackio:
    """A run that is resumed by its name; TRACKIO_DIR and the like hold."""

    def __init__(self, campaign: Campaign, again_from: int | None) -> None:
        import trackio

        trackio.init(project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=campaign.id, resume="allow")
        self._trackio = trackio

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`. Its own steps count what is logged, so the axis goes along."""
        self._trackio.log({**figures, f"{_group(figures)}/step": step})

    def close(self) -> None:
        """See `Tracker`."""
        self._trackio.finish()


class MLflow:
    """A run that is found by a tag; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME hold, else it is in <home>/logs/mlflow."""

    _TAG = "spinflow.campaign"

    def __init__(self, campaign: Campaign, again_from: int | None) -> None:
        import mlflow

        if not os.environ.get("MLFLOW_TRACKING_URI"):
            mlflow.set_tracking_uri(f"sqlite:///{campaign.folder('mlflow')}/mlflow.db")
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        found = mlflow.search_runs(filter_string=f"tags.`{self._TAG}` = '{campaign.id}'", output_format="list", max_results=1)
        old = {"run_id": found[0].info.run_id} if found else {"run_name": campaign.name, "tags": {self._TAG: campaign.id}}
        mlflow.start_run(**old, log_system_metrics=False)
        self._mlflow = mlflow

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        self._mlflow.log_metrics(dict(figures), step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self._mlflow.end_run()


def _group(figures: Mapping[str, float]) -> str:
    return next(iter(figures)).partition("/")[0]


KINDS: dict[str, type[TensorBoard | Wandb | Trackio | MLflow]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": MLflow,
}


class Trackers:
    """All trackers of a recipe. One that fails is left out from there and said so: what is shown never ends a run.

    `again_from` is the step from which a killed training does its steps again.
    """

    def __init__(self, names: list[str], campaign: Campaign, again_from: int | None = None) -> None:
        self._open: dict[str, Tracker] = {}
        for name in names:
            try:
                self._open[name] = KINDS[name](campaign, again_from)
            except Exception as error:
                self._drop(name, error)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """See `Tracker`."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.log(figures, step)
            except Exception as error:
                self._drop(name, error)

    def close(self) -> None:
        """See `Tracker`."""
        for name, tracker in list(self._open.items()):
            try:
                tracker.close()
            except Exception as error:
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        self._open.pop(name, None)
        what = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        print_event(Progress("training.report_to", 0, 0, note=f"{name} fails and is left out from here: {what}"))
