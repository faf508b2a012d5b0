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

from spin_core.lm.blocks import Blocks, Form, register_attention

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

    def window(self, form: Form) -> tuple[int, int]:
        """Keys that a query sees before its own, and after: −1 is all."""
        binds = form.window is not None and form.window < self.longest_key
        return (form.window - 1 if binds and form.window else -1), 0


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


class Masks:
    """The blocks as masks: a token sees its own block and its prompt's, up to its own place. One a window, made when first asked for."""

    def __init__(self, blocks: Blocks, device: torch.device) -> None:
        sizes = torch.tensor([end - start for _, start, end, _ in blocks])
        prompts = torch.tensor([number for number, (tree, start, _, _) in enumerate(blocks) if start == tree])
        trees = torch.tensor([start == tree for tree, start, _, _ in blocks]).cumsum(0) - 1
        position_T = torch.cat([torch.arange(end - start) + (prompt if start > tree else 0) for tree, start, end, prompt in blocks])
        self._longest = int(position_T.max()) + 1
        self._block_T = torch.arange(len(blocks)).repeat_interleave(sizes).to(device)
        self._prompt_T = prompts[trees].repeat_interleave(sizes).to(device)
        self._position_T = position_T.to(device)
        self._made: dict[int | None, BlockMask] = {}

    def of(self, window: int | None) -> BlockMask:
        """The mask of layers with this window; one that no sequence outgrows is none."""
        window = window if window and window < self._longest else None
        if window not in self._made:
            self._made[window] = self._make(window)
        return self._made[window]

    def _make(self, window: int | None) -> BlockMask:
        block_T, prompt_T, position_T = self._block_T, self._prompt_T, self._position_T

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & ((block_T[key] == block_T[query]) | (block_T[key] == prompt_T[query]))

        def sees_near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            assert window
            return sees(batch, head, query, key) & (position_T[key] > position_T[query] - window)

        length = len(block_T)
        return create_block_mask(sees_near if window else sees, None, None, length, length, device=str(block_T.device))


def trees(implementation: str, blocks: Blocks, device: torch.device) -> Any:
    """What attention of this name takes as `spin_trees`: made once a micro-batch, used by every layer."""
    if implementation == KERNELS["flex"]:
        return Masks(blocks, device)
    return sequences(blocks, device) if implementation in KERNELS.values() else blocks


Kernel = Callable[[Tensor, Tensor, Tensor, Sequences, Form], Tensor]


def _varlen(query_THE: Tensor, key_KHE: Tensor, value_KHE: Tensor, own: Sequences, form: Form) -> Tensor:
    if form.softcap:
        raise NotImplementedError("it has no soft cap")
    grouped, window = query_THE.shape[1] != key_KHE.shape[1], own.window(form)
    out: Any = varlen_attn(query_THE, key_KHE, value_KHE, *own.bounds(), scale=form.scale, window_size=window, enable_gqa=grouped)
    return out  # type: ignore[no-any-return]


def _flash(query_THE: Tensor, key_KHE: Tensor, value_KHE: Tensor, own: Sequences, form: Form) -> Tensor:
    from flash_attn import flash_attn_varlen_func  # an extra: it is built for one CUDA and one torch

    how = {"softmax_scale": form.scale, "causal": True, "window_size": own.window(form), "softcap": form.softcap or 0.0}
    out: Tensor = flash_attn_varlen_func(query_THE, key_KHE, value_KHE, *own.bounds(), **how)
    return out


def _in_kernel_dtype(*tensors: Tensor) -> list[Tensor]:
    """The kernels know no autocast, under which rotated queries and keys are fp32 and values are not."""
    kind = tensors[0].device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensors[0].dtype
    return [tensor.to(dtype) for tensor in tensors]


def sequence_attention(kernel: Kernel, query: Tensor, key: Tensor, value: Tensor, own: Sequences, form: Form) -> Tensor:
    """Attention in one call of a variable-length kernel (see `register_attention`)."""
    query_THE, key_THE, value_THE = (x[0].transpose(0, 1) for x in _in_kernel_dtype(query, key, value))
    # unlike indexing, the gradient of index_select is added without sorting
    key_KHE, value_KHE = (x.index_select(0, own.key_K) for x in (key_THE, value_THE))
    return kernel(query_THE, key_KHE, value_KHE, own, form)[None]


@cache
def _compiled() -> Any:
    """Uncompiled, flex_attention holds the whole matrix of scores. Micro-batches differ in length: one kernel for all."""
    return torch.compile(flex_attention, dynamic=True)


@cache
def _capped(softcap: float | None) -> Any:
    """The score function of a soft cap: one object a cap, or each layer would compile a kernel of its own."""
    return softcap and (lambda score, batch, head, query, key: softcap * torch.tanh(score / softcap))


def masked_attention(query: Tensor, key: Tensor, value: Tensor, masks: Masks, form: Form) -> Tensor:
    """Attention by flex_attention (see `register_attention`)."""
    flex = _compiled() if query.device.type == "cuda" else flex_attention
    how = {"score_mod": _capped(form.softcap), "scale": form.scale, "enable_gqa": query.shape[1] != key.shape[1]}
    out: Tensor = flex(*_in_kernel_dtype(query, key, value), block_mask=masks.of(form.window), **how)
    return out.transpose(1, 2).contiguous()


register_attention(KERNELS["varlen"], partial(sequence_attention, _varlen))
register_attention(KERNELS["flash"], partial(sequence_attention, _flash))
register_attention(KERNELS["flex"], masked_attention)
