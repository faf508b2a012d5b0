"""Attention over packed trees by CUDA kernels. They are as exact as `attention.disagreement` finds them, device by device.

To the variable-length kernels every block of a packed batch is one sequence: a prompt has its own keys, an answer its prompt's
and its own, and a query sees the keys up to its own place from the right (bottom-right causal). To flex_attention the batch is
one sequence with a mask. Axes: T tokens, K keys of all sequences (a prompt's once for each of its answers), H heads, E head size,
G blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn

from spin_core.lm.packing import Blocks, register_attention

# by their names in the recipe, the one to try first at the front; transformers takes what has "flash" in its name for its own
KERNELS = {"varlen": "spin_varlen", "flash": "spin_dao", "flex": "spin_flex"}


@dataclass(frozen=True)
class Sequences:
    """The blocks of a micro-batch as the variable-length kernels take them."""

    key_K: Tensor  # int64, index in T
    query_ends: Tensor  # int32 [G + 1], from 0
    key_ends: Tensor  # int32 [G + 1], from 0
    longest_query: int
    longest_key: int

    def bounds(self) -> tuple[Tensor, Tensor, int, int]:
        """In the kernels' order."""
        return self.query_ends, self.key_ends, self.longest_query, self.longest_key


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


def visible(blocks: Blocks, device: torch.device) -> BlockMask:
    """The blocks as a mask: a token sees its own block and its prompt's, up to its own place."""
    sizes = torch.tensor([end - start for _, start, end, _ in blocks])
    prompts = torch.tensor([number for number, (tree, start, _, _) in enumerate(blocks) if start == tree])
    trees = torch.tensor([start == tree for tree, start, _, _ in blocks]).cumsum(0) - 1
    block_T = torch.arange(len(blocks)).repeat_interleave(sizes).to(device)
    prompt_T = prompts[trees].repeat_interleave(sizes).to(device)

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & ((block_T[key] == block_T[query]) | (block_T[key] == prompt_T[query]))

    return create_block_mask(sees, None, None, len(block_T), len(block_T), device=str(device))


def trees(implementation: str, blocks: Blocks, device: torch.device) -> Any:
    """What attention of this name takes as `spin_trees`: made once a micro-batch, used by every layer."""
    if implementation == KERNELS["flex"]:
        return visible(blocks, device)
    return sequences(blocks, device) if implementation in KERNELS.values() else blocks


Kernel = Callable[[Tensor, Tensor, Tensor, Sequences, float | None], Tensor]


def _varlen(query_THE: Tensor, key_KHE: Tensor, value_KHE: Tensor, own: Sequences, scale: float | None) -> Tensor:
    grouped = query_THE.shape[1] != key_KHE.shape[1]
    out: Any = varlen_attn(query_THE, key_KHE, value_KHE, *own.bounds(), scale=scale, window_size=(-1, 0), enable_gqa=grouped)
    return out  # type: ignore[no-any-return]


def _flash(query_THE: Tensor, key_KHE: Tensor, value_KHE: Tensor, own: Sequences, scale: float | None) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # an extra: it is built for one CUDA and one torch

    out: Tensor = flash_attn_varlen_func(query_THE, key_KHE, value_KHE, *own.bounds(), softmax_scale=scale, causal=True)
    return out


def _in_kernel_dtype(*tensors: Tensor) -> list[Tensor]:
    """The kernels know no autocast, under which rotated queries and keys are fp32 and values are not."""
    kind = tensors[0].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensors[0].dtype
    return [tensor.to(dtype) for tensor in tensors]


def sequence_attention(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, own: Sequences, scale: float | None) -> Tensor:
    """Attention in one call of a variable-length kernel (see `register_attention`)."""
    query_THE, key_THE, value_THE = (x[0].transpose(0, 1) for x in _in_kernel_dtype(query, key, value))
    # unlike indexing, the gradient of index_select is added without sorting
    key_KHE, value_KHE = (x.index_select(0, own.key_K) for x in (key_THE, value_THE))
    return kernel(query_THE, key_KHE, value_KHE, own, scale)[None]


@cache
def _compiled() -> Any:
    """Uncompiled, flex_attention holds the whole matrix of scores. Micro-batches differ in length: one kernel for all."""
    return torch.compile(flex_attention, dynamic=True)


def masked_attention(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scale: float | None) -> Tensor:
    """Attention by flex_attention (see `register_attention`)."""
    flex = _compiled() if query.device.type == "cuda" else flex_attention
    grouped = query.shape[1] != key.shape[1]
    out: Tensor = flex(*_in_kernel_dtype(query, key, value), block_mask=mask, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous()


register_attention(KERNELS["varlen"], partial(sequence_attention, _varlen))
register_attention(KERNELS["flash"], partial(sequence_attention, _flash))
register_attention(KERNELS["flex"], masked_attention)
