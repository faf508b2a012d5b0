"""One model an epoch, kept while training goes on, for the choice that is made after it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from spin_core.contracts.rows import EPOCHS
from spin_core.lm import adapter
from spin_core.training.sharding import save_whole
from spin_core.training.trainer import PlannedTrainer


def epoch_ends(pairs: int, pairs_per_step: int, epochs: int) -> dict[int, int]:
    """Step → epoch: the steps in which the last pair of an epoch is, but for the last step, after which training ends.

    Epochs do not end with steps: a step may have pairs of two, or several small epochs. Of these the first names the model.
    """
    last = -(-pairs * epochs // pairs_per_step)
    ends = {-(-pairs * epoch // pairs_per_step): epoch for epoch in range(epochs, 0, -1)}
    return {step: ends[step] for step in sorted(ends) if step < last}


def keep_model(trainer: PlannedTrainer, target: Path, lora: bool) -> None:
    """Saves the model as it is, or its adapter, whole or not at all; called on every device."""
    part = target.with_suffix(".part")
    if trainer.is_world_process_zero():
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    trainer.accelerator.wait_for_everyone()
    save_whole(trainer, str(part / adapter.FOLDER if lora else part))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        shutil.rmtree(target, ignore_errors=True)  # of steps that are done again
        os.rename(part, target)


class EpochModels(TrainerCallback):  # type: ignore[misc]
    """Saves the model, or its adapter, at the end of each epoch but the last, in a folder that survives a crash."""

    def __init__(self, trainer: PlannedTrainer, ends: dict[int, int], work: Path, lora: bool) -> None:
        self._trainer, self._ends, self._folder, self._lora = trainer, ends, work / EPOCHS, lora

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """On every device. It comes before the step's checkpoint: a run that continues from that has this model."""
        if state.global_step not in self._ends:
            return
        keep_model(self._trainer, self._folder / str(self._ends[state.global_step]), self._lora)

    def finish(self, model: Path, out: Path) -> None:
        """Copies the models of this run into its artifact, adapters added to `model`. What is here stays: a killed run comes again."""
        for epoch in map(str, self._ends.values()):
            target = out / EPOCHS / epoch
            shutil.copytree(self._folder / epoch, target, ignore=shutil.ignore_patterns("training_args.bin"))
            if self._lora:
                adapter.merge(model, target)
                shutil.rmtree(target / adapter.FOLDER)
