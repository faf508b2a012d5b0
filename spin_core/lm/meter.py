"""What a training step costs: model FLOPs, the device's rate, peak memory. Axes: L layers, D width, V vocabulary."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spin_core.runtime.process import peak_rss

# dense bf16 FLOP/s from the vendors' data sheets, by what the driver calls the device
_PEAK_BF16 = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
_PROBE = 1024


@dataclass(frozen=True)
class Work:
    """What a micro-batch asks of the model, padding left out."""

    tokens: int  # positions that the decoder computes
    attended: int  # (query, key) positions, both sides of the causal mask counted once
    answers: int  # positions that the LM head computes


@dataclass(frozen=True)
class ModelCost:
    """FLOPs of a forward and backward pass: a multiply-add is two, recomputed activations are not counted."""

    token: float
    attended: float
    answer: float

    def flops(self, work: Work) -> float:
        """FLOPs of one micro-batch."""
        return self.token * work.tokens + self.attended * work.attended + self.answer * work.answers


def cost_of(model: Any) -> ModelCost | None:
    """The cost of a dense decoder; None for a mixture of experts, whose active weights are not counted here, and without attention.

    Six FLOPs a weight and token; four for a weight that is frozen (an adapter's base), which needs no gradient of its own.
    """
    config = model.config.get_text_config()
    experts = any("expert" in name for name in vars(config) if not name.startswith("_"))  # every config has _experts_implementation
    if experts or not hasattr(config, "num_attention_heads"):
        return None
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    weights = [p for p in model.parameters() if id(p) not in embeddings]
    frozen, trained = (sum(map(_size, (p for p in weights if p.requires_grad is wanted))) for wanted in (False, True))
    # q·k and weights·v, twice that for their gradients
    attended = 3.0 * 4.0 * config.num_hidden_layers * config.num_attention_heads * head_size(config)
    head = 6.0 if model.get_output_embeddings().weight.requires_grad else 4.0
    return ModelCost(6.0 * trained + 4.0 * frozen, attended, head * config.hidden_size * config.vocab_size)


def head_size(config: Any) -> int:
    """Width of an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _size(weight: Any) -> int:
    """Its elements; bitsandbytes keeps two of a 4-bit weight in a byte, and ZeRO-3 keeps most elsewhere."""
    state = getattr(weight, "quant_state", None)
    return int(getattr(weight, "ds_numel", weight.numel()) if state is None else torch.Size(state.shape).numel())


def peak_flops(device: torch.device, bf16: bool) -> float:
    """FLOP/s: the data sheet's for a known GPU in bf16, elsewhere the rate at which it multiplies square matrices now."""
    if device.type == "cuda" and bf16:
        name = torch.cuda.get_device_name(device)
        known = [rate for part, rate in _PEAK_BF16.items() if part in name]
        if known:
            return known[0]
    matrix = torch.rand(_PROBE, _PROBE, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    best = 0.0
    for _ in range(6):
        started = time.perf_counter()
        product: Tensor = matrix @ matrix
        product[0, 0].item()  # waits for the device
        best = max(best, 2.0 * _PROBE**3 / (time.perf_counter() - started))
    return best


def peak_memory_gb(device: torch.device) -> float:
    """The most that this process has held so far, in GB: of the GPU's memory, or resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_rss() / 1e9
