"""TRL's `DPOTrainer` on a set of pairs, in a process of its own: started by `bench.training`, prints one JSON line.

It is the trainer as installed, on our token ids (its own tokenisation is passed over). What must agree with the recipe is set: fp32, β,
learning rate, optimiser, schedule, epochs, pairs a step, no truncation, no checkpoints. All else is as it is by default (batches
of 8 pairs, gradient checkpointing, a frozen second model that is run in every step) but for what a job's `tuning` names.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spin_core.runtime.process import die_with_parent, peak_rss

MARK = "@result "


def _divisor(number: int, at_most: int) -> int:
    return next(size for size in range(min(number, at_most), 0, -1) if number % size == 0)


def configuration(job: dict[str, Any], folder: str) -> Any:
    """The DPOConfig of a job."""
    from trl import DPOConfig

    training = job["training"]
    must_agree = {
        "output_dir": folder,
        "bf16": False,
        "use_cpu": True,
        "max_length": job["longest"],
        "beta": training["beta"],
        "learning_rate": training["learning_rate"],
        "optim": {"rmsprop": "rmsprop", "adamw": "adamw_torch"}[training["optimizer"]],
        "lr_scheduler_type": training["schedule"],
        "weight_decay": 0.0,
        "max_grad_norm": training["max_grad_norm"],
        "num_train_epochs": training["epochs"],
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "model_init_kwargs": {"dtype": "float32"},
    }
    tuning = dict(job["tuning"])
    usual = DPOConfig.__dataclass_fields__["per_device_train_batch_size"].default
    size = _divisor(training["pairs_per_step"], tuning.pop("per_device_train_batch_size", usual))
    batches = {"per_device_train_batch_size": size, "gradient_accumulation_steps": training["pairs_per_step"] // size}
    # the trainer would drop the lengths that it groups by as a column that the model does not know
    return DPOConfig(**must_agree, **batches, **tuning, remove_unused_columns=False)


def trainer_on_given_ids(clock: Callable[[], float] = time.perf_counter) -> Any:
    """TRL's trainer as a class that takes rows of `given_ids`, and says in `reference_s` how long its reference pass took."""
    from trl import DPOTrainer

    class OnGivenIds(DPOTrainer):  # type: ignore[misc]
        reference_s = 0.0

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _precompute_ref_logps(self, *args: Any) -> Any:
            started = clock()
            dataset = super()._precompute_ref_logps(*args)
            self.reference_s = clock() - started
            return dataset

    return OnGivenIds


def given_ids(rows: list[dict[str, Any]]) -> Any:
    """Our pairs under TRL's names, with the lengths that it groups by."""
    from datasets import Dataset

    names = {"prompt_ids": "prompt_ids", "real_ids": "chosen_ids", "generated_ids": "rejected_ids"}
    content: list[dict[str, Any]] = [{theirs: row[ours] for ours, theirs in names.items()} for row in rows]
    for row in content:
        row["length"] = len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"]))
    return Dataset.from_list(content)


def run(job: dict[str, Any], folder: str) -> dict[str, Any]:
    """Trains; seconds are those of the reference pass and of `train()`: imports and loading are before them."""
    from transformers import AutoTokenizer

    trainer = trainer_on_given_ids()(
        model=job["model"],
        args=configuration(job, folder),
        train_dataset=given_ids(job["rows"]),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
    )
    started = time.perf_counter()
    trainer.train()
    training_s = time.perf_counter() - started
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return {"reference_s": trainer.reference_s, "training_s": training_s, "losses": losses, "peak_mb": peak_rss() / 2**20}


def main() -> None:
    """One job: a file named on the command line."""
    die_with_parent()
    job = json.loads(Path(sys.argv[1]).read_text())
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
        print(MARK + json.dumps(run(job, folder)), flush=True)


if __name__ == "__main__":
    main()
