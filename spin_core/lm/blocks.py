"""Attention over packed trees, block by block: the form that runs everywhere, and what the kernels are compared with.

A block is a prompt, which sees itself, or an answer, which sees its prompt and itself. Within a block keys lie in the order of
their positions, so a window is a band of the block's mask. Axes: T tokens, H heads, E head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface

ATTENTION = "spin_tree"
Blocks = Sequence[tuple[int, int, int, int]]  # as `Packed.blocks` gives them


@dataclass(frozen=True)
class Form:
    """What a layer's attention is, beside causal."""

    scale: float | None = None  # of query · key; None: 1/√E
    window: int | None = None  # positions that a query sees, its own counted; None: all up to its own
    softcap: float | None = None  # scores s become cap · tanh(s / cap)


Attend = Callable[[Tensor, Tensor, Tensor, Any, Form], Tensor]


def register_attention(name: str, attend: Attend) -> None:
    """Has models whose attention is `name` call `attend(query, key, value, trees, form)`.

    query is [1, H, T, E], key and value [1, K, T, E], what it returns [1, T, H, E]. `trees` is what the model's call was given
    as `spin_trees`: a packed batch's trees in the form that this attention takes. Window and soft cap are the layer's own.
    """

    def attention(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        sliding_window: int | None = None,
        softcap: float | None = None,
        spin_trees: Any = None,
        s_aux: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        if spin_trees is None:
            raise ValueError(f"{name} attention needs the trees of a packed batch")
        if s_aux is not None:
            raise NotImplementedError("attention sinks")
        return attend(query, key, value, spin_trees, Form(scaling, sliding_window, softcap)), None

    AttentionInterface.register(name, attention)


def tree_attention(query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, form: Form) -> Tensor:
    """Attention block by block (see `register_attention`), on every device SDPA runs on; not run on a GPU.

    Only blocks that some token may see are computed: each prompt over itself, each answer over its prompt and itself.
    """
    parts = []
    # the blocks follow one another; the gradient of a split is one copy, that of a slice as large as the whole
    sizes = [end - start for _, start, end, _ in blocks]
    tensors = (torch.split(x, sizes, dim=2) for x in (query, key, value))
    prompt_key = prompt_value = key
    for (tree, start, _, prompt), own_query, own_key, own_value in zip(blocks, *tensors, strict=True):
        if start == tree:
            prompt_key, prompt_value = own_key, own_value
            parts.append(_block(own_query, own_key, own_value, 0, form))
        else:
            unseen = max(0, prompt + 1 - form.window) if form.window else 0  # too early for the window of the first query already
            before = [x[:, :, unseen:] if unseen else x for x in (prompt_key, prompt_value)]
            keys, values = (torch.cat(pair, dim=2) for pair in zip(before, (own_key, own_value), strict=True))
            parts.append(_block(own_query, keys, values, prompt - unseen, form))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


def _block(query: Tensor, key: Tensor, value: Tensor, before: int, form: Form) -> Tensor:
    """Attention of queries whose first one has `before` keys in front of its own."""
    size, seen = query.shape[2], key.shape[2]
    window = form.window if form.window and form.window < seen else None
    grouped = query.shape[1] != key.shape[1]
    if not before and not window and not form.softcap:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, scale=form.scale, enable_gqa=grouped)
    mask = torch.ones(size, seen, dtype=torch.bool, device=query.device).tril(before)
    if window:
        mask = mask.triu(before + 1 - window)
    if not form.softcap:
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=form.scale, enable_gqa=grouped)
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * (form.scale or query.shape[-1] ** -0.5)
    scores = (form.softcap * torch.tanh(scores / form.softcap)).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


register_attention(ATTENTION, tree_attention)
