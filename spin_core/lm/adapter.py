"""LoRA through peft: θ_t is frozen, a low-rank adapter trains beside it, and θ_{t+1} is their sum, a full model again.

So the next iteration samples from, scores and starts at exactly θ_{t+1}, and its adapter begins at zero beside it: the
reference is always the last player, never the first base.

With `quantize: 4bit` (QLoRA) the player in training is Q(θ_t) plus the adapter, Q being NF4. So the reference of the training
pairs is scored under Q(θ_t) too: the step-0 check holds as always, and the adapter is not asked to mend what rounding did.
The adapter is then added to θ_t itself, not to Q(θ_t), or every iteration would leave its rounding in the weights. Held-out
rows are scored under the full models, since those are what a user gets.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from spin_core.runtime.errors import BadInput

FOLDER = "adapter"  # of the artifact


def quantized(kind: str | None, bf16: bool) -> dict[str, Any]:
    """Keywords for `from_pretrained` that load the linear layers as `training.lora.quantize` says; none for None.

    Raises BadInput where bitsandbytes is not installed, or where the weights are to be cut over devices.
    """
    if kind is None:
        return {}
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BadInput("training.lora.quantize=4bit needs bitsandbytes", remedy="pip install bitsandbytes, or leave quantize out")
    if _sharded():
        raise BadInput("training.lora.quantize=4bit does not work with FSDP or DeepSpeed", remedy="leave one of the two out")
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if bf16 else torch.float32,
    )
    device = int(os.environ.get("LOCAL_RANK", "0")) if torch.cuda.is_available() else "cpu"
    return {"quantization_config": config, "device_map": {"": device}}


def attach(model: Any, lora: dict[str, Any], seed: int, bf16: bool) -> Any:
    """The PeftModel of `model` (fp32), frozen, with a trainable fp32 adapter of `training.lora`; at first it adds nothing.

    With `bf16`, the frozen weights of adapted layers are held in it: autocast rounds them so at every use, so no number
    changes. Raises BadInput for target modules that the model does not have, or that would change with another layer.
    """
    from peft import LoraConfig, get_peft_model  # a second, which scoring and runs without an adapter need not pay
    from peft.tuners.lora import LoraLayer

    torch.manual_seed(seed)  # every rank draws the same first factors, and so does a run that starts again
    named = lora["target_modules"]
    targets = "all-linear" if named == ["all-linear"] else named  # a word of peft's
    config = LoraConfig(r=lora["r"], lora_alpha=lora["alpha"], lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:  # peft's word for a model that has none of the targets, or one that is no linear layer
        raise BadInput(_what(model, targets, " ".join(str(error).split())[:200]), remedy=_remedy(model)) from None
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    absent = [] if isinstance(targets, str) else [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in layers)]
    if absent:
        raise BadInput(_what(model, absent, "no such layer"), remedy=_remedy(model))
    if model.config.get_text_config().tie_word_embeddings:
        shared = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
        bad = [name for name, layer in layers.items() if id(layer) in shared]
        if bad:
            raise BadInput(_what(model, bad, "input and output embedding share one weight"), remedy="leave it out")
    if bf16 and not lora["quantize"] and not _sharded():
        for layer in layers.values():
            layer.get_base_layer().to(torch.bfloat16)
    trainable, total = adapted.get_nb_trainable_parameters()
    print(f"LoRA: {trainable:,} of {total:,} parameters train, in {len(layers)} layers", flush=True)
    return adapted


def adapts_head(model: Any) -> bool:
    """Whether the LM head has an adapter: TRL computes log-probs past it."""
    from peft.tuners.lora import LoraLayer

    return isinstance(model.get_output_embeddings(), LoraLayer)


def merge(model: Path, out: Path) -> None:
    """Adds the adapter in `out`/adapter to the weights of θ_t in fp32; writes the full model θ_{t+1} to `out`."""
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    PeftModel.from_pretrained(base, out / FOLDER).merge_and_unload().save_pretrained(out)
    for name in ("README.md", "training_args.bin"):  # an empty model card; pickled paths of this machine
        (out / FOLDER / name).unlink(missing_ok=True)


def _sharded() -> bool:
    """Whether accelerate will cut the weights over devices: FSDP wants one dtype in all that it cuts together."""
    return any(os.environ.get(name, "false") == "true" for name in ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"))


def _what(model: Any, targets: Any, why: str) -> str:
    return f"training.lora.target_modules: {targets} in a {model.config.model_type} model: {why}"


def _remedy(model: Any) -> str:
    linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return f"take all-linear, or from {', '.join(sorted(linear - {'lora_A', 'lora_B', 'default', 'base_layer'}))}"
