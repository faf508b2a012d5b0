"""The child that trains θ_{t+1} from θ_t, one of them a device."""

from __future__ import annotations

import math
import os
import shutil
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from spin_core.lm import adapter
from spin_core.lm.attention import set_attention, set_plain_attention
from spin_core.lm.device import compute_device
from spin_core.lm.layout import step_of
from spin_core.recipe.losses import trl_lacks
from spin_core.runtime.errors import BadInput
from spin_core.runtime.process import die_with_parent, job_main
from spin_core.runtime.progress import Progress, print_event
from spin_core.scoring.beta import Surprise
from spin_core.tracking.callback import Tracked
from spin_core.tracking.trackers import Campaign
from spin_core.training.attempt import Attempt
from spin_core.training.changed import prove_changed
from spin_core.training.epochs import EpochModels, epoch_ends
from spin_core.training.files import complete, last_whole_checkpoint
from spin_core.training.launch import checkpoints
from spin_core.training.objectives import Objective, objective
from spin_core.training.plan import plan
from spin_core.training.rows import sizes_of, training_rows
from spin_core.training.schedule import Schedule
from spin_core.training.sharding import autocast_in_forward, save_whole
from spin_core.training.trainer import MetricsLog, PlannedTrainer, SpinTrainer, collate_pairs, score_answers_in_forward
from spin_core.training.validation import Validation


def _arguments(job: dict[str, Any], accumulation: int, packed: bool) -> TrainingArguments:
    """The plan decides how pairs are cut and how long an epoch is, `Schedule` the rates; the forward pass autocasts itself."""
    settings = job["training"]
    arguments = {
        "output_dir": job["work"],
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": accumulation,
        "num_train_epochs": 1,
        "learning_rate": settings["learning_rate"],
        "optim": {"rmsprop": "rmsprop", "adamw": "adamw_torch"}[settings["optimizer"]],
        "weight_decay": 0.0,
        "max_grad_norm": settings["max_grad_norm"],
        "gradient_checkpointing": settings["gradient_checkpointing"],
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "use_cpu": compute_device().type == "cpu",
        "seed": settings["seed"],
        "logging_steps": 1,
        "logging_first_step": True,
        "save_strategy": "steps",
        "save_steps": settings["save_steps"],
        "save_total_limit": 1,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": "none",  # `Tracked` reports
    }
    if packed:
        return TrainingArguments(**arguments)
    from spin_core.training.trl_backend import trl_arguments  # importing TRL takes seconds

    return trl_arguments(arguments, settings)


def without_dropout(model: str) -> Any:
    """The config of θ_t with every dropout at 0: the policy must equal the reference at step 0.

    It has to be changed before the model is built, because layers copy the rates when they are made.
    """
    config = AutoConfig.from_pretrained(model)
    for name, value in vars(config).items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    return config


def _packs(config: Any, longest: int, settings: dict[str, Any]) -> bool:
    """Whether the packed backend trains a model of this config; raises BadInput where TRL cannot stand in for it."""
    step = step_of(config, longest, settings["backend"])
    if not step.packed and settings["backend"] != "trl" and (lacking := trl_lacks(settings)):
        raise BadInput(f"{step.why}, and the TRL backend has no {lacking}", remedy="train with loss: sigmoid")
    print(step.why, flush=True)
    return step.packed


def _player(folder: str, config: Any, settings: dict[str, Any], packed: bool, bf16: bool) -> Any:
    """θ_t as the backend trains it, with its adapter if there is one."""
    frozen = adapter.quantized(settings["lora"] and settings["lora"]["quantize"], bf16)
    # fp32 master weights: a step at 5e-7 is smaller than bf16 can add to a weight
    model: Any = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, **frozen)
    if packed:
        set_attention(model, settings["attention"], bf16)
    else:
        set_plain_attention(model)
    if settings["lora"]:
        model = adapter.attach(model, settings["lora"], settings["seed"], bf16)
        if not packed and adapter.adapts_head(model):
            raise BadInput("training.lora.target_modules: the TRL backend trains no adapter of the LM head", remedy="leave it out")
    if packed:
        score_answers_in_forward(model)
    return model


def _check_reporters(names: list[str]) -> None:
    for name in names:
        if not find_spec(name):
            raise BadInput(f"training.report_to: {name} is not installed", remedy=f"pip install {name}, or leave it out")


def _objective(job: dict[str, Any]) -> Objective:
    """The recipe's, with β as a number; a line for people where a fixed β asks for more than the human answers have."""
    surprise, beta = Surprise.read(Path(job["reference"])), job["training"]["beta"]
    found = objective(job["training"] | {"beta": surprise.resolve(beta)})
    asked = found.asks(surprise.mean_real_tokens)
    if beta != "auto" and asked > surprise.mean_real_nll and os.environ.get("RANK", "0") == "0":
        told = f"beta {beta:g} asks for {asked:.3g} nats, and human answers have {surprise.mean_real_nll:.3g} left under this model"
        print_event(Progress("training", 0, 0, note=f"{told}: the rest can only come from making sampled answers less likely"))
    return found


def _train(job: dict[str, Any]) -> None:
    goal = _objective(job)
    settings = job["training"] = job["training"] | {"beta": goal.beta}
    work = Path(job["work"]) / checkpoints(settings["sharding"], os.environ)
    work.mkdir(exist_ok=True)
    job["work"] = str(work)
    attempt = Attempt(work)
    _check_reporters(settings["report_to"])
    bf16 = settings["precision"] == "bf16"
    config = without_dropout(job["model"])
    history = settings["history_weight"] > 0
    rows = training_rows(Path(job["pairs"]), Path(job["reference"]), work, settings["pairing"], history=history)
    sizes = sizes_of(rows)
    packed = _packs(config, int(sizes.width.max()), settings)
    epochs = settings["stop_after_epochs"] or settings["epochs"]
    steps = plan(
        sizes,
        pairs_per_step=settings["pairs_per_step"],
        epochs=epochs,
        seed=settings["seed"],
        group_rows=settings["group_rows"],
        tokens=settings["tokens_per_micro_batch"],
        world=int(os.environ.get("WORLD_SIZE", "1")),
        padded=not packed,
    )
    args = _arguments(job, steps.accumulation, packed)  # before the model: they say how the devices share what is loaded
    model = _player(job["model"], config, settings, packed, bf16)
    if bf16:
        autocast_in_forward(model, args.device)
    log = MetricsLog(work / "metrics.jsonl")
    tracked = Tracked(settings["report_to"], Campaign(**job["tracked"]["campaign"]), job["tracked"]["first"])
    common: dict[str, Any] = {"model": model, "args": args, "train_dataset": rows, "callbacks": [log, tracked, attempt]}
    trainer: PlannedTrainer
    if packed:
        trainer = SpinTrainer(data_collator=partial(collate_pairs, all_rows=rows), **common)
    else:
        from spin_core.training.trl_backend import TrlTrainer  # importing TRL takes seconds

        trainer = TrlTrainer(Path(job["model"]), **common)
    horizon = math.ceil(len(sizes) * settings["epochs"] / settings["pairs_per_step"])
    trainer.follow(steps, goal, Schedule.of(settings, max(horizon, len(steps.steps))), bf16)
    if packed and trainer.is_world_process_zero():
        print(steps.saving(sizes), flush=True)
    with args.main_process_first(local=False):  # it may remove some
        checkpoint = last_whole_checkpoint(work)
    ends = epoch_ends(len(sizes), settings["pairs_per_step"], epochs) if settings["choose_epoch"] else {}
    kept = EpochModels(trainer, ends, work, lora=bool(settings["lora"]))
    trainer.add_callback(kept)
    validation = _validation(trainer, job, packed)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.accelerator.wait_for_everyone()
    attempt.require()
    out = Path(job["out"])
    save_whole(trainer, str(out / adapter.FOLDER if settings["lora"] else out))
    if trainer.is_world_process_zero():
        if validation:
            validation.finish(out)
        if settings["lora"]:
            adapter.merge(Path(job["model"]), out)
        prove_changed(Path(job["model"]), out)
        kept.finish(Path(job["model"]), out)
        complete(Path(job["model"]), out)
        shutil.copy(log.path, out / "metrics.jsonl")


def _validation(trainer: PlannedTrainer, job: dict[str, Any], packed: bool) -> Validation | None:
    """Looks at the validation pairs, where the recipe wants them and the packed step can."""
    if not job["training"]["validate_steps"]:
        return None
    if not packed:
        raise BadInput("training.validate_steps: this model trains with TRL's step, which takes no looks", remedy="leave it out")
    work = Path(job["work"])
    rows = training_rows(Path(job["pairs"]), Path(job["reference"]), work, split="validation")
    found = Validation(trainer, rows, work, job["training"])
    trainer.add_callback(found)
    return found


if __name__ == "__main__":
    die_with_parent()
    job_main(_train)
