"""The child that fine-tunes the base model on human answers, one of them a device."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, EarlyStoppingCallback
from trl import SFTConfig, SFTTrainer

from spin_core.contracts.tables import id_lists
from spin_core.lm.device import compute_device
from spin_core.runtime.errors import BadInput
from spin_core.runtime.process import die_with_parent, job_main
from spin_core.runtime.progress import Progress, print_event
from spin_core.training.files import complete, last_whole_checkpoint
from spin_core.training.sharding import autocast_in_forward, save_whole
from spin_core.training.trainer import MetricsLog

_NOT_LEARNED = -100  # transformers' mark in labels


def _rows(encoded: Path, split: str) -> Dataset:
    """Prompt and human answer as one sequence [P + C], the prompt not learned."""
    table = pq.read_table(encoded / f"{split}.parquet", columns=["prompt_ids", "real_ids"])
    prompts, answers = (id_lists(table[name]) for name in table.column_names)
    both = [*zip(prompts, answers, strict=True)]
    return Dataset.from_dict(
        {
            "input_ids": [[*prompt, *answer] for prompt, answer in both],
            "labels": [[_NOT_LEARNED] * len(prompt) + answer for prompt, answer in both],
        }
    )


def batch_of(rows_per_step: int, longest: int, tokens: int, world: int) -> tuple[int, int]:
    """Rows a device takes at once, and how often, so that a step has exactly `rows_per_step` over `world` devices.

    Raises BadInput where the devices cannot share a step's rows equally.
    """
    if rows_per_step % world:
        raise BadInput(f"sft.rows_per_step: {rows_per_step} rows cannot be shared by {world} devices", remedy=f"take a multiple of {world}")
    share = rows_per_step // world
    most = max(1, min(share, tokens // longest))
    batch = next(size for size in range(most, 0, -1) if share % size == 0)
    return batch, share // batch


class _Log(MetricsLog):
    """sft.jsonl, a line a step and one a validation, and progress for the parent."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """A line."""
        if not state.is_world_process_zero or not logs or not logs.keys() & {"loss", "eval_loss"}:
            return
        line = {"step": state.global_step} | {name: logs[name] for name in ("epoch", "loss", "eval_loss", "learning_rate") if name in logs}
        line["epoch"] = line.get("epoch", state.epoch or 0.0)
        with self.path.open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        note = f"validation NLL {line['eval_loss']:.3f}" if "eval_loss" in line else f"loss {line['loss']:.3f}"
        print_event(Progress("warm start", state.global_step, state.max_steps, "steps", note))


def _train(job: dict[str, Any]) -> None:
    settings, work, out = job["sft"], Path(job["work"]), Path(job["out"])
    train, validation = (_rows(Path(job["encoded"]), split) for split in ("train", "validation"))
    longest = max(len(ids) for rows in (train, validation) for ids in rows["input_ids"])
    world = int(os.environ.get("WORLD_SIZE", "1"))
    batch, accumulation = batch_of(settings["rows_per_step"], longest, settings["tokens_per_micro_batch"], world)
    steps = math.ceil(len(train) / settings["rows_per_step"]) * settings["epochs"]
    args = SFTConfig(
        output_dir=str(work),
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=max(1, settings["tokens_per_micro_batch"] // longest),
        gradient_accumulation_steps=accumulation,
        num_train_epochs=settings["epochs"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(settings["schedule"], settings["schedule"]),
        warmup_steps=math.ceil(settings["warmup_ratio"] * steps),
        weight_decay=0.0,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        bf16=False,  # ours is in the forward pass, see `sharding`
        use_cpu=compute_device().type == "cpu",
        seed=settings["seed"],
        logging_steps=1,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        disable_tqdm=True,
        report_to="none",
        restore_callback_states_from_checkpoint=True,  # epochs without a gain so far
    )
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    model.config.use_cache = False
    if job["precision"] == "bf16":
        autocast_in_forward(model, args.device)
    log = work / "sft.jsonl"
    trainer = SFTTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[_Log(log), EarlyStoppingCallback(settings["patience"])],
    )
    with args.main_process_first(local=False):
        checkpoint = last_whole_checkpoint(work)
    args.eval_on_start = checkpoint is None  # again, it would count as an epoch without a gain
    took = trainer.train(resume_from_checkpoint=checkpoint).metrics["train_runtime"]
    trainer.accelerator.wait_for_everyone()
    model.config.use_cache = True
    save_whole(trainer, str(out))
    if trainer.is_world_process_zero():
        complete(Path(job["model"]), out)
        speed = {} if checkpoint else {"rows_per_s": trainer.state.epoch * len(train) / took}  # a resumed run's time is not all of it
        (out / log.name).write_text(log.read_text() + json.dumps({"step": trainer.state.global_step} | speed) + "\n")


if __name__ == "__main__":
    die_with_parent()
    job_main(_train)
