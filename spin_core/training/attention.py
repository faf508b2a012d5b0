"""Attention over packed trees by variable-length CUDA kernels, where they prove exact; block by block elsewhere.

Every block of a packed batch is one sequence to the kernel: a prompt has its own keys, an answer its prompt's and its own,
and a query sees the keys up to its own place from the right (bottom-right causal). Axes: T tokens, K keys of all sequences
(a prompt's once for each of its answers), H heads, E head size, G blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from spin_core.errors import BadInput
from spin_core.training.meter import head_size
from spin_core.training.packing import ATTENTION, pack, tree_attention

VARLEN = "spin_varlen"
_TOLERANCE = 2e-2  # relative, in the norm: bf16 rounds at 4e-3, and a wrong mask is off by a half or more
Blocks = Sequence[tuple[int, int, int, int]]  # as `tree_attention` takes them


@dataclass(frozen=True)
class Sequences:
    """The blocks of a micro-batch as the kernels take them; made once, used by every layer."""

    key_K: Tensor  # int64, index in T
    query_ends: Tensor  # int32 [G + 1], from 0
    key_ends: Tensor  # int32 [G + 1], from 0
    longest_query: int
    longest_key: int


def sequences(blocks: Blocks, device: torch.device) -> Sequences:
    """The blocks, which follow one another without a gap, as sequences."""
    keys: list[Tensor] = []
    sizes: list[tuple[int, int]] = []
    for tree, start, end, prompt in blocks:
        if start > tree:
            keys.append(torch.arange(tree, tree + prompt))
        keys.append(torch.arange(start, end))
        sizes.append((end - start, end - start + (prompt if start > tree else 0)))
    ends = torch.tensor([(0, 0), *sizes]).cumsum(0).int().to(device)
    longest_query, longest_key = (max(column) for column in zip(*sizes, strict=True))
    return Sequences(torch.cat(keys).to(device), ends[:, 0].contiguous(), ends[:, 1].contiguous(), longest_query, longest_key)


def varlen_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    spin_sequences: Sequences | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of query [1, H, T, E] over key and value [1, K heads, T, E] in one kernel; returns [1, T, H, E]."""
    if spin_sequences is None:
        raise ValueError(f"{VARLEN} attention needs the sequences of a packed batch")
    kind = query.device.type
    # the kernels know no autocast, under which rotated queries and keys are fp32 and values are not
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    query_THE, key_THE, value_THE = (x[0].transpose(0, 1).to(dtype) for x in (query, key, value))
    out_THE: Any = varlen_attn(
        query_THE,
        key_THE.index_select(0, spin_sequences.key_K),  # unlike indexing, its gradient is added without sorting
        value_THE.index_select(0, spin_sequences.key_K),
        spin_sequences.query_ends,
        spin_sequences.key_ends,
        spin_sequences.longest_query,
        spin_sequences.longest_key,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return out_THE[None], None


AttentionInterface.register(VARLEN, varlen_attention)


def set_attention(model: Any, wanted: str, bf16: bool) -> None:
    """Has `model` take packed batches. `auto` tries the CUDA kernels in bf16; `sdpa` goes block by block.

    The kernels are used only where they agree here and now with attention block by block, forward and backward, in the
    model's own head sizes. Raises BadInput where `varlen` is asked for and they do not.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = ATTENTION
    if wanted == "varlen" or (wanted == "auto" and device.type == "cuda" and bf16):
        problem = disagreement(model.config, device)
        if problem and wanted == "varlen":
            raise BadInput(f"training.attention=varlen does not work here: {problem}", remedy="use auto")
        print(f"attention: block by block, since varlen does not work here: {problem}" if problem else "attention: varlen", flush=True)
        name = ATTENTION if problem else VARLEN
    model.set_attn_implementation(name)


def disagreement(config: Any, device: torch.device) -> str | None:
    """What is wrong with the kernels on this device in bf16 for heads of this config; None if they are right."""
    config = config.get_text_config()
    heads, grouped = config.num_attention_heads, config.num_key_value_heads
    size = head_size(config)
    prompt, answers = list(range(70)), [[1] * 150, [2] * 33, [3] * 2]
    batch = pack([prompt] * 3 + [[5]] * 2, [*answers, [4] * 17, [6] * 130])
    blocks = batch.blocks()
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, h, len(batch.ids_T), size, generator=generator) for h in (heads, grouped, grouped)]
    weight = torch.randn(1, len(batch.ids_T), heads, size, generator=generator).to(device, torch.bfloat16)
    results = []
    try:
        for dtype in (torch.bfloat16, torch.float32):
            # the same numbers for both: those that bf16 can hold
            query, key, value = (x.to(device, torch.bfloat16).to(dtype).requires_grad_() for x in tensors)
            if dtype == torch.bfloat16:
                out = varlen_attention(None, query, key, value, None, spin_sequences=sequences(blocks, device))[0]
            else:
                out = tree_attention(None, query, key, value, None, spin_blocks=blocks)[0]
            results.append([out.detach(), *torch.autograd.grad((out * weight.to(dtype)).sum(), (query, key, value))])
    except (RuntimeError, NotImplementedError, ValueError) as error:
        return " ".join(str(error).split())[:200]
    for name, found, right in zip(("output", "query gradient", "key gradient", "value gradient"), *results, strict=True):
        off = float((found.float() - right).norm() / right.norm())
        if not off < _TOLERANCE:
            return f"{name} is off by {off:.1%}"
    return None
