"""The official flat YAML (`configs/config.yaml`) as settings of this project."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from spin_core.recipe import DataSettings, GenerationSettings, ModelSettings, Recipe, TrainingSettings, scalars
from spin_core.runtime.errors import BadInput

# official key → ours, where it is the same thing under another name
_TRAINING = {
    "beta": "beta",
    "learning_rate": "learning_rate",
    "num_train_epochs": "epochs",
    "warmup_ratio": "warmup_ratio",
    "max_grad_norm": "max_grad_norm",
    "gradient_checkpointing": "gradient_checkpointing",
    "seed": "seed",
    "loss_type": "loss",
    "lr_scheduler_type": "schedule",
    "optim": "optimizer",
}
_VALUES: dict[str, dict[Any, Any]] = {
    "optim": {"adamw_torch": "adamw", "adamw_hf": "adamw", "adamw_torch_fused": "adamw"},
    "lr_scheduler_type": {"constant_with_warmup": "constant"},
}
_DEFAULTS = {"beta": 0.1, "num_train_epochs": 3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}
_DEFAULTS |= {"warmup_ratio": 0.0, "seed": 42}
_OWN = {
    *("model_name_or_path", "model_revision", "trust_remote_code", "dataset_mixer", "dataset_splits", "per_device_train_batch_size"),
    *("gradient_accumulation_steps", "bf16", "max_length", "max_prompt_length", "max_new_tokens", "output_dir", "max_train_samples"),
    *("use_peft", "load_in_4bit", "chat_template"),
    *("chat_template_kwargs", "on_bad_row"),  # not theirs
}
# accepted so that a file of theirs runs as it is; they change no result here
_UNUSED = {
    *("do_eval", "do_train", "evaluation_strategy", "eval_strategy", "eval_steps", "per_device_eval_batch_size", "max_eval_samples"),
    *("hub_model_id", "hub_model_revision", "log_level", "logging_steps", "logging_strategy", "logging_first_step", "report_to"),
    *("save_strategy", "save_steps", "save_total_limit", "preprocessing_num_workers", "remove_unused_columns", "truncation_side"),
    *("torch_dtype", "use_flash_attention_2", "gradient_checkpointing_kwargs", "overwrite_output_dir", "run_name", "tf32"),
    *("ddp_timeout", "disable_tqdm", "dataloader_num_workers"),
}
# theirs → a field of training.lora; read where use_peft is on
_LORA = {"lora_r": "r", "lora_alpha": "alpha", "lora_target_modules": "target_modules"}
# these would make the player differ from the opponent at step 0, or train what an adapter is not
_NOT_IN_LORA = ("lora_dropout", "lora_modules_to_save")
_TEXT = ("model_name_or_path", "model_revision", "output_dir", "base_model_revision", "model_code_revision")  # whatever they look like
# these would change the result, so they may only be off
_OFF = ("load_in_8bit", "push_to_hub", "fp16", "base_model_revision", "model_code_revision")


@dataclass(frozen=True)
class Finetune:
    """One official fine-tuning run."""

    recipe: Recipe
    mixer: dict[str, float]  # data set → share of its train rows
    split: str
    max_rows: int | None
    output_dir: Path
    unused: tuple[str, ...]  # keys of the file that change nothing here


def load(path: Path, overrides: list[str], devices: int) -> Finetune:
    """Reads the file and `--key=value` overrides as the official parser does. Raises BadInput that names the key."""
    content = _read(path) | dict(_override(item) for item in overrides)
    _check_keys(path, content)
    keys = _DEFAULTS | content
    for required in ("model_name_or_path", "dataset_mixer"):
        if not keys.get(required):
            raise BadInput(f"{path}: {required} is missing", remedy="see the official configs/config.yaml")
    mixer = keys["dataset_mixer"]
    if not isinstance(mixer, dict) or not all(isinstance(share, int | float) and 0 <= share <= 1 for share in mixer.values()):
        raise BadInput(f"{path}: dataset_mixer must name data sets with a share from 0 to 1", remedy="for example  new_data/iter0: 1.0")
    splits = keys.get("dataset_splits") or ["train", "test"]
    train = [split for split in splits if "train" in str(split)]
    if len(train) != 1:
        raise BadInput(f"{path}: dataset_splits must name one train split, not {len(train)}", remedy="for example [train, test]")
    peft = {*_LORA, *_NOT_IN_LORA}
    return Finetune(
        recipe=_recipe(path, keys, devices),
        mixer={str(name): float(share) for name, share in mixer.items()},
        split=str(train[0]),
        max_rows=keys.get("max_train_samples"),
        output_dir=Path(keys.get("output_dir") or "outputs"),
        unused=tuple(key for key in content if key in _UNUSED or (key in peft and not keys.get("use_peft"))),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = scalars.read(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{path} does not exist", remedy="give a YAML file like the official configs/config.yaml") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path} cannot be read: {' '.join(str(error).split())}", remedy="mend the YAML") from None
    if not isinstance(content, dict):
        raise BadInput(f"{path} is not a mapping of keys", remedy="give a YAML file like the official configs/config.yaml")
    return {str(key): _settled(str(key), value) for key, value in content.items()}


def _settled(key: str, value: Any) -> Any:
    return scalars.settled(value, str if key in _TEXT else Any)


def _override(item: str) -> tuple[str, Any]:
    key, equals, value = item.partition("=")
    if not equals or not key.startswith("--"):
        raise BadInput(f"{item!r} is not --key=value", remedy="for example --num_train_epochs=2")
    name = key[2:].replace("-", "_")
    try:
        return name, _settled(name, scalars.read(value))
    except yaml.YAMLError as error:
        raise BadInput(f"{key}: {' '.join(str(error).split())}", remedy="put the value in quotes within quotes") from None


def _check_keys(path: Path, content: dict[str, Any]) -> None:
    known = {*_TRAINING, *_OWN, *_UNUSED, *_LORA, *_NOT_IN_LORA, *_OFF}
    for key, value in content.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            raise BadInput(f"{path}: unknown key {key}", remedy=f"did you mean {near[0]}?" if near else "remove it")
        if key in _OFF and value:
            raise BadInput(f"{path}: {key}={value} is not supported here", remedy="remove it")


def _lora(path: Path, keys: dict[str, Any]) -> dict[str, Any] | None:
    """`training.lora` of their keys, None where `use_peft` is off."""
    if not keys.get("use_peft"):
        if keys.get("load_in_4bit"):
            raise BadInput(f"{path}: load_in_4bit needs use_peft", remedy="rounded weights cannot be trained without an adapter")
        return None
    for key in _NOT_IN_LORA:
        if keys.get(key):
            raise BadInput(f"{path}: {key}={keys[key]} is not supported here", remedy="remove it")
    targets = keys.get("lora_target_modules")
    if not targets:  # theirs would fall back on peft's choice for the architecture
        raise BadInput(f"{path}: use_peft needs lora_target_modules", remedy="for example [q_proj, v_proj], or [all-linear]")
    lora = {ours: keys[key] for key, ours in _LORA.items() if keys.get(key) is not None}
    lora["target_modules"] = ["all-linear"] if targets == "all-linear" else targets
    return lora | ({"quantize": "4bit"} if keys.get("load_in_4bit") else {})


def _recipe(path: Path, keys: dict[str, Any], devices: int) -> Recipe:
    batch, accumulation = keys["per_device_train_batch_size"], keys["gradient_accumulation_steps"]
    for key in ("per_device_train_batch_size", "gradient_accumulation_steps"):
        if not isinstance(keys[key], int) or keys[key] < 1:
            raise BadInput(f"{path}: {key} must be a whole number from 1, got {keys[key]!r}", remedy="mend it")
    training = {ours: _VALUES.get(key, {}).get(keys[key], keys[key]) for key, ours in _TRAINING.items() if keys.get(key) is not None}
    whole, prompt = keys.get("max_length") or 1024, keys.get("max_prompt_length") or 512
    training |= {
        "pairs_per_step": batch * accumulation * devices,
        "tokens_per_micro_batch": batch * whole,
        "precision": "auto" if keys.get("bf16") else "fp32",  # auto is bf16 where the device has it
    }
    if lora := _lora(path, keys):
        training["lora"] = lora
    # what their generation cuts answers at; the human ones are cut alike, or length would tell the two apart
    answer = min(keys.get("max_new_tokens") or GenerationSettings().max_new_tokens, whole - prompt)
    try:
        settings = TrainingSettings.model_validate(training)
        return Recipe(
            name="official",
            model=ModelSettings(
                name=str(keys["model_name_or_path"]),
                revision=keys.get("model_revision"),
                trust_remote_code=bool(keys.get("trust_remote_code")),
                chat_template=keys.get("chat_template"),
                chat_template_kwargs=keys.get("chat_template_kwargs") or {},
            ),
            data=DataSettings(
                name=next(iter(keys["dataset_mixer"])), max_prompt_tokens=prompt, on_bad_row=keys.get("on_bad_row") or "error"
            ),
            generation=GenerationSettings(max_new_tokens=answer),
            training=settings,
        )
    except ValidationError as error:
        first = error.errors()[0]
        ours = next(part for part in reversed(first["loc"]) if isinstance(part, str))  # an entry of a list is named by its number
        key = next((key for key, name in (_TRAINING | _LORA).items() if name == ours), {"max_new_tokens": "max_length"}.get(ours, ours))
        raise BadInput(f"{path}: {key}: {first['msg']}, got {keys.get(key, first['input'])!r}", remedy="mend it") from None
