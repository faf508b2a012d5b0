"""The child that trains θ_{t+1} from θ_t; started by `accelerate launch`."""

from __future__ import annotations

import functools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from spin_core.errors import BadInput
from spin_core.gather import TRAIN_FILE
from spin_core.process import die_with_parent, job_main
from spin_core.rows import read_rows
from spin_core.training.logprobs import choose_layout
from spin_core.training.packing import pack
from spin_core.training.score import load_scores
from spin_core.training.score_job import use_bf16
from spin_core.training.trainer import MetricsLog, SpinTrainer, collate_pairs, score_answers_in_forward


def micro_batch(pairs_per_step: int, wanted: int, world: int) -> int:
    """The largest micro-batch ≤ `wanted` that cuts the step into equal parts on every device."""
    if pairs_per_step % world:
        raise BadInput(
            f"training.pairs_per_step={pairs_per_step} cannot be cut evenly over {world} devices", remedy="make it a multiple of them"
        )
    share = pairs_per_step // world
    return next(size for size in range(min(wanted, share), 0, -1) if share % size == 0)


def _arguments(job: dict[str, Any], bf16: bool) -> TrainingArguments:
    settings = job["training"]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    size = micro_batch(settings["pairs_per_step"], settings["pairs_per_micro_batch"], world)
    return TrainingArguments(
        output_dir=job["work"],
        per_device_train_batch_size=size,
        gradient_accumulation_steps=max(1, settings["pairs_per_step"] // (size * world)),
        num_train_epochs=settings["epochs"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(settings["schedule"], settings["schedule"]),
        warmup_steps=settings["warmup_ratio"],
        optim={"rmsprop": "rmsprop", "adamw": "adamw_torch"}[settings["optimizer"]],
        weight_decay=0.0,
        max_grad_norm=settings["max_grad_norm"],
        gradient_checkpointing=settings["gradient_checkpointing"],
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        seed=settings["seed"],
        data_seed=settings["seed"],
        logging_steps=1,
        logging_first_step=True,
        save_strategy="steps",
        save_steps=settings["save_steps"],
        save_total_limit=1,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )


def _dataset(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs with their reference log-probs; a missing or foreign row is an error."""
    path = Path(job["pairs"]) / TRAIN_FILE
    scores = load_scores(Path(job["reference"]) / "scores.parquet", path)
    rows = read_rows(path, ["row_id", "iteration", "prompt_ids", "real_ids", "generated_ids"])
    for row in rows:
        row["reference_real"], row["reference_generated"] = scores[row["row_id"], row["iteration"]]
    return rows


def without_dropout(model: str) -> Any:
    """The config of θ_t with every dropout at 0: the policy must equal the reference at step 0.

    It has to be changed before the model is built, because layers copy the rates when they are made.
    """
    config = AutoConfig.from_pretrained(model)
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def _saving(rows: list[dict[str, Any]]) -> str:
    """What packing saves over an epoch of `rows`; answers shared within a micro-batch save more."""
    prompts, real, generated = (sum(len(row[name]) for row in rows) for name in ("prompt_ids", "real_ids", "generated_ids"))
    packed, separate = prompts + real + generated - 2 * len(rows), 2 * prompts + real + generated
    return f"packed layout: {packed:,} tokens instead of {separate:,} and their padding, each pair's prompt computed once"


def _train(job: dict[str, Any]) -> None:
    settings = job["training"]
    bf16 = use_bf16(settings["precision"])
    # fp32 master weights: a step at 5e-7 is smaller than bf16 can add to a weight
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], config=without_dropout(job["model"]), dtype=torch.float32)
    layout = choose_layout(model, settings["backend"])
    score_answers_in_forward(model)
    rows = _dataset(job)
    if layout is pack:
        print(_saving(rows), flush=True)
    log = MetricsLog(Path(job["work"]) / "metrics.jsonl")
    trainer = SpinTrainer(
        model=model,
        args=_arguments(job, bf16),
        train_dataset=rows,
        data_collator=functools.partial(collate_pairs, layout=layout),
        callbacks=[log],
        beta=settings["beta"],
        loss_kind=settings["loss"],
        label_smoothing=settings["label_smoothing"],
        precision="bf16" if bf16 else "fp32",
    )
    log.trainer = trainer
    trainer.train(resume_from_checkpoint=_last_whole_checkpoint(Path(job["work"])))
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(job["out"])
    if trainer.is_world_process_zero():
        _complete(Path(job["model"]), Path(job["out"]), log.path)


def _last_whole_checkpoint(work: Path) -> str | None:
    """The newest checkpoint that was written to its end (the trainer's state is written last); others are removed."""
    while found := get_last_checkpoint(str(work)):
        try:
            json.loads((Path(found) / "trainer_state.json").read_text())
            return str(found)
        except (OSError, ValueError):
            shutil.rmtree(found)
    return None


def _complete(source: Path, out: Path, metrics: Path) -> None:
    """Adds the tokenizer and generation files of θ_t and the metrics; drops the trainer's pickled arguments."""
    (out / "training_args.bin").unlink(missing_ok=True)
    own = {file.name for file in out.iterdir()}  # config.json says fp32 here, whatever θ_t was saved in
    for file in source.iterdir():
        if (
            file.name not in own
            and file.suffix in {".json", ".jinja", ".model", ".txt"}
            and file.name != "MANIFEST.json"
            and "index.json" not in file.name
        ):
            shutil.copy(file, out / file.name)
    shutil.copy(metrics, out / "metrics.jsonl")


if __name__ == "__main__":
    die_with_parent()
    job_main(_train)
