"""Which attention a model takes over packed trees: CUDA kernels where they prove exact, block by block elsewhere."""

from __future__ import annotations

from typing import Any

import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spin_core.lm.blocks import ATTENTION
from spin_core.lm.kernels import KERNELS, trees
from spin_core.lm.meter import head_size
from spin_core.lm.packing import pack
from spin_core.runtime.errors import BadInput

_TOLERANCE = 2e-2  # relative, in the norm: bf16 rounds at 4e-3, and a wrong mask is off by a half or more
_PROBE_WINDOW = 50  # shorter than the probe's prompt, longer and shorter than its answers


def set_attention(model: Any, wanted: str, bf16: bool) -> None:
    """Has `model` take packed batches. `auto` tries the CUDA kernels in bf16, one after the other; `sdpa` goes block by block.

    A kernel is used only where it agrees here and now with attention block by block, forward and backward, in the model's own
    head sizes and the run's precision. Raises BadInput where it is asked for by name and does not.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    names = {"sdpa": [], "auto": [*KERNELS] if device.type == "cuda" and bf16 else []}.get(wanted, [wanted])
    for name in names:
        problem = disagreement(name, model.config, device, torch.bfloat16 if bf16 else torch.float32)
        if problem is None:
            print(f"attention: {name}", flush=True)
            model.set_attn_implementation(KERNELS[name])
            return
        if name == wanted:
            raise BadInput(f"training.attention={name} does not work here: {problem}", remedy="use auto")
        print(f"attention: {name} does not work here: {problem}", flush=True)
    model.set_attn_implementation(ATTENTION)


def set_plain_attention(model: Any) -> None:
    """Has `model`, just loaded, attend as its architecture says: transformers' SDPA, its default, leaves soft caps out."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")


def window_of(config: Any) -> int | None:
    """Positions that a query sees in the layers that have a window, its own counted; None where none has."""
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return None if kinds is not None and "sliding_attention" not in kinds else window


def disagreement(kernel: str, config: Any, device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with a kernel on this device, in `dtype`, for heads, windows and soft cap of this config; None if it is right."""
    config = config.get_text_config()
    for window in (None, _PROBE_WINDOW) if window_of(config) else (None,):
        problem = _disagreement(kernel, config, window, device, dtype)
        if problem:
            return f"{problem} in windows" if window else problem
    return None


def _disagreement(kernel: str, config: Any, window: int | None, device: torch.device, dtype: torch.dtype) -> str | None:
    heads = config.num_attention_heads
    grouped = getattr(config, "num_key_value_heads", None) or heads
    size = head_size(config)
    how = {"sliding_window": window, "softcap": getattr(config, "attn_logit_softcapping", None)}
    prompt, answers = list(range(70)), [[1] * 150, [2] * 33, [3] * 2]
    batch = pack([prompt] * 3 + [[5]] * 2, [*answers, [4] * 17, [6] * 130])
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, h, len(batch.ids_T), size, generator=generator) for h in (heads, grouped, grouped)]
    weight = torch.randn(1, len(batch.ids_T), heads, size, generator=generator).to(device, dtype)
    results = []
    try:
        for name, own in ((KERNELS[kernel], dtype), (ATTENTION, torch.float32)):
            # the same numbers for both: those that the kernel's dtype can hold
            query, key, value = (x.to(device, dtype).to(own).requires_grad_() for x in tensors)
            given = trees(name, batch.blocks(), device)
            out = ALL_ATTENTION_FUNCTIONS[name](None, query, key, value, None, spin_trees=given, **how)[0]
            results.append([out.detach(), *torch.autograd.grad((out * weight.to(own)).sum(), (query, key, value))])
    except (RuntimeError, NotImplementedError, ValueError, ImportError) as error:
        return " ".join(str(error).split())[:200]
    for what, found, right in zip(("output", "query gradient", "key gradient", "value gradient"), *results, strict=True):
        off = float((found.float() - right).norm() / right.norm())
        if not off < _TOLERANCE:
            return f"{what} is off by {off:.1%}"
    return None
