"""Summed log-probs of answers, packed or padded. Axes: B sequences, T positions, N answer tokens of the batch, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from spin_core.lm.kernels import trees
from spin_core.lm.packing import Packed

_HEAD_CHUNK = 512  # answer positions whose logits are computed at once
_KEPT_BYTES = 512 << 20  # of a micro-batch's token log-probs over the vocabulary, fp32, where activations are kept


@dataclass(frozen=True)
class Batch:
    """Sequences prompt + answer, padded on the right."""

    ids_BT: Tensor  # int64
    mask_BT: Tensor  # int64, 1 where there is a token
    sequence_N: Tensor  # int64, which sequence an answer token belongs to
    position_N: Tensor  # int64, the position that predicts it
    target_N: Tensor  # int64, its id

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def collate(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Batch:
    """Lays out B prompts [P] and answers [R ≥ 1] as given; nothing is added."""
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    sequence: list[int] = []
    position: list[int] = []
    target: list[int] = []
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        length = len(prompt) + len(answer)
        ids[row, :length] = torch.tensor([*prompt, *answer])
        mask[row, :length] = 1
        sequence += [row] * len(answer)
        position += range(len(prompt) - 1, length - 1)
        target += answer
    return Batch(ids, mask, torch.tensor(sequence), torch.tensor(position), torch.tensor(target))


def answer_logps(model: Any, batch: Batch | Packed) -> Tensor:
    """log p(answer | prompt) of each sequence: fp32 [B], nats, summed over its answer tokens.

    The LM head runs on answer positions only, in chunks. The backward pass recomputes them, but for the first 512 MB where the
    model keeps its activations: full logits never exist.
    A packed batch needs a model that `layout.choose_layout` has prepared.
    """
    decoder = _decoder(unwrapped(model))
    if isinstance(batch, Packed):
        given = trees(decoder.config._attn_implementation, batch.blocks(), batch.ids_T.device)
        inputs = {"input_ids": batch.ids_T[None], "position_ids": batch.position_T[None], "spin_trees": given}
        hidden_ND = decoder(**inputs, use_cache=False).last_hidden_state[0, batch.source_N]
        logp_N = _token_logps(model, hidden_ND, batch.target_N)
        # answers are numbered in the order asked for, so pick_B holds every number and its largest is S − 1
        logp_S = torch.zeros(int(batch.pick_B.max()) + 1, device=logp_N.device).index_add(0, batch.answer_N, logp_N)
        return logp_S[batch.pick_B]
    hidden_BTD = decoder(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False).last_hidden_state
    logp_N = _token_logps(model, hidden_BTD[batch.sequence_N, batch.position_N], batch.target_N)
    return torch.zeros(batch.ids_BT.shape[0], device=logp_N.device).index_add(0, batch.sequence_N, logp_N)


def _token_logps(model: Any, hidden_ND: Tensor, target_N: Tensor) -> Tensor:
    """log p of each target: fp32 [N]."""
    head = unwrapped(model).get_output_embeddings()

    def chunk_logps(hidden_CD: Tensor, target_C: Tensor) -> Tensor:
        return -functional.cross_entropy(_own_logits(model, hidden_CD, plain).float(), target_C, reduction="none")

    def chunked_logps(hidden_ND: Tensor, target_N: Tensor) -> Tensor:
        chunks, room = [], 0 if model.is_gradient_checkpointing else _KEPT_BYTES
        for hidden_CD, target_C in zip(torch.split(hidden_ND, _HEAD_CHUNK), torch.split(target_N, _HEAD_CHUNK), strict=True):
            room -= 4 * len(target_C) * model.config.get_text_config().vocab_size
            if torch.is_grad_enabled() and room < 0:
                chunks.append(checkpoint(chunk_logps, hidden_CD, target_C, use_reentrant=False))
            else:
                chunks.append(chunk_logps(hidden_CD, target_C))
        return torch.cat(chunks)

    # The head is called once, however many chunks there are: FSDP2 and ZeRO-3 gather its weights and reduce their gradients a
    # call, and devices with different numbers of chunks would lose step with each other.
    plain, head.forward = head.forward, chunked_logps
    try:
        logp_N: Tensor = head(hidden_ND, target_N)
    finally:
        head.forward = plain
    return logp_N


def unwrapped(model: Any) -> Any:
    """The model itself, where peft holds it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _decoder(own: Any) -> Any:
    """What turns ids into the hidden states that the head is given."""
    decoder = own.get_decoder()
    if decoder not in (own, own.get_output_embeddings()):
        return decoder
    embeddings = own.get_input_embeddings()  # transformers did not find it: a few architectures go by names of their own
    return next(child for child in own.children() if any(module is embeddings for module in child.modules()))


def _own_logits(model: Any, hidden_CD: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    """What the model makes of hidden states of its decoder, [C, V].

    Its own forward pass does it, since architectures scale, cap, cut or shift what their head is given or gives. In it the
    decoder returns these states and the head is `head`, in fp32; neither is called as a module, so no hook of FSDP or
    DeepSpeed runs.
    """
    own = unwrapped(model)
    ids = torch.zeros(1, len(hidden_CD), dtype=torch.long, device=hidden_CD.device)  # nobody reads them
    decoded = _Decoded((hidden_CD[None],))
    with ExitStack() as stack:
        for module in {own.base_model, _decoder(own)} - {own}:  # it calls one of them
            stack.enter_context(_in_place_of(own, module, lambda *args, **kwargs: decoded))
        stack.enter_context(_in_place_of(own, own.get_output_embeddings(), lambda hidden, *args, **kwargs: head(hidden).float()))
        logits_1CV: Tensor = type(own).forward(own, input_ids=ids).logits
    return logits_1CV[0]


class _Decoded(tuple):  # type: ignore[type-arg]
    """A decoder's output with hidden states and nothing else."""

    def __getattr__(self, name: str) -> Any:
        return self[0] if name == "last_hidden_state" else None


class _Stand:
    """Stands where a module was, and computes something else."""

    def __init__(self, module: Any, compute: Callable[..., Any]) -> None:
        self._module, self._compute = module, compute

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._compute(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


@contextmanager
def _in_place_of(model: Any, module: Any, compute: Callable[..., Any]) -> Iterator[None]:
    """Has `compute` called where `model` calls `module`."""
    parent, name = next((parent, name) for parent in model.modules() for name, child in parent._modules.items() if child is module)
    parent._modules[name] = _Stand(module, compute)
    try:
        yield
    finally:
        parent._modules[name] = module
