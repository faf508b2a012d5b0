"""Looks at the validation pairs while training goes on, and the model of the best look."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

from spin_core.runtime.progress import Progress, print_event
from spin_core.training.epochs import keep_model
from spin_core.training.files import cut_after, lines_until
from spin_core.training.trainer import PlannedTrainer, collate_pairs, pairs_under


class Validation(TrainerCallback):  # type: ignore[misc]
    """Every so many steps the mean loss, margin and accuracy of the pairs (`validation.jsonl`). Every device computes all of them:
    they are few, and a model that is cut over devices needs each one in every forward pass.

    With `patience` training ends after so many looks without a lower loss, and the model of the lowest one is kept in a folder
    that survives a crash.
    """

    def __init__(self, trainer: PlannedTrainer, rows: Dataset, work: Path, settings: dict[str, Any]) -> None:
        self._trainer, self._rows, self._log = trainer, rows, work / "validation.jsonl"
        self._every, self._patience, self._lora = settings["validate_steps"], settings["early_stop"], bool(settings["lora"])
        self._tokens = settings["tokens_per_micro_batch"]
        self._folder = work / "best"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drops the looks that a killed run did after its last checkpoint: they will be done again."""
        if state.is_world_process_zero:
            cut_after(self._log, state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """On every device, and before the step's checkpoint."""
        if state.global_step % self._every and state.global_step != state.max_steps:
            return
        look = {"step": state.global_step} | self._look()
        looks = lines_until(self._log, state.global_step - 1)
        best = min((found["loss"] for found in looks), default=float("inf"))
        self._trainer.accelerator.wait_for_everyone()  # all have read
        if state.is_world_process_zero:
            self._log.write_text("".join(f"{json.dumps(found)}\n" for found in (*looks, look)))
            note = f"validation loss {look['loss']:.3f}, accuracy {look['accuracy']:.1%}"
            print_event(Progress("training", state.global_step, state.max_steps, "steps", note))
        if self._patience is None:
            return
        if look["loss"] < best:
            keep_model(self._trainer, self._folder, self._lora)
        behind = len(looks) - min(range(len(looks)), key=lambda number: looks[number]["loss"]) if looks and look["loss"] >= best else 0
        if behind >= self._patience:
            control.should_training_stop = True

    def _look(self) -> dict[str, float]:
        trainer, sums, count = self._trainer, {"loss": 0.0, "margin": 0.0, "accuracy": 0.0}, 0
        trainer.model_wrapped.eval()
        for batch in self._batches():
            given = {name: value.to(trainer.args.device) if hasattr(value, "to") else value for name, value in collate_pairs(batch).items()}
            with torch.no_grad():
                loss_B, metrics = trainer.objective.loss(pairs_under(trainer.model_wrapped, given))
            sums["loss"] += float(loss_B.sum())
            sums["margin"] += float(metrics["rewards/margins"].sum())
            sums["accuracy"] += float(metrics["rewards/accuracies"].sum())
            count += len(batch)
        trainer.model_wrapped.train()
        return {name: value / max(1, count) for name, value in sums.items()}

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        batch: list[dict[str, Any]] = []
        tokens = 0
        for row in self._rows:
            cost = sum(len(row[name]) for name in ("prompt_ids", "real_ids", "generated_ids"))
            if batch and tokens + cost > self._tokens:
                yield batch
                batch, tokens = [], 0
            batch.append(row)
            tokens += cost
        if batch:
            yield batch

    def finish(self, out: Path) -> None:
        """Leaves the looks in the artifact, and the best one's model in place of the last where training was to end early."""
        if self._log.exists():
            shutil.copy(self._log, out)
        if self._patience is not None and self._folder.exists():
            shutil.copytree(self._folder, out, dirs_exist_ok=True, ignore=shutil.ignore_patterns("training_args.bin"))
