"""What a training sends to the trackers, step by step."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback

from spin_core.tracking.trackers import Campaign, Trackers


class Tracked(TrainerCallback):  # type: ignore[misc]
    """Logs the metrics of every step under `training/…`, steps counted on over the campaign: `first` were in iterations before."""

    def __init__(self, names: list[str], campaign: Campaign, first: int) -> None:
        self._names, self._campaign, self._first = names, campaign, first
        self._trackers: Trackers | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """On one device of all."""
        if state.is_world_process_zero and self._names:
            again_from = self._first + state.global_step + 1 if state.global_step else None
            self._trackers = Trackers(self._names, self._campaign, again_from)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """A step's line, as `MetricsLog` has it."""
        if self._trackers is None or not logs or "learning_rate" not in logs:
            return
        figures = {
            f"training/{name}": float(value) for name, value in logs.items() if isinstance(value, int | float) and math.isfinite(value)
        }
        self._trackers.log(figures, self._first + state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Closes them."""
        if self._trackers is not None:
            self._trackers.close()
