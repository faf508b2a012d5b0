"""A player: a small Llama, its log-probs by the library's packed forward pass, and its answers by transformers' `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from bench.proof.families import END, PAD, VOCABULARY
from bench.proof.settings import TOKENS, Sizes
from spin_core.lm.attention import set_attention
from spin_core.lm.logprobs import answer_logps
from spin_core.lm.packing import pack

Ids = Sequence[Sequence[int]]
Weights = dict[str, Tensor]
MOST = 48  # tokens of an answer
_BATCH = 512


def make(sizes: Sizes, seed: int) -> Any:
    """A random player."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=sizes.width,
        intermediate_size=3 * sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def weights_of(model: Any) -> Weights:
    """A copy."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def between(old: Weights, new: Weights, gamma: float) -> Weights:
    """θ_t + γ(θ_{t+1} − θ_t)."""
    return {name: torch.lerp(old[name], new[name], gamma) for name in old}


def logps(model: Any, prompts: Ids, answers: Ids) -> list[float]:
    """log p(answer | prompt) of each, nats."""
    set_attention(model, "sdpa", bf16=False)
    order = sorted(range(len(prompts)), key=lambda i: (tuple(prompts[i]), len(answers[i])))  # equal prompts meet in one tree
    found = [0.0] * len(prompts)
    with torch.no_grad():
        for batch in _cut(order, [len(p) + len(a) for p, a in zip(prompts, answers, strict=True)]):
            packed = pack([prompts[i] for i in batch], [answers[i] for i in batch])
            for index, logp in zip(batch, answer_logps(model, packed).tolist(), strict=True):
                found[index] = logp
    return found


def _cut(order: list[int], costs: list[int]) -> list[list[int]]:
    batches: list[list[int]] = []
    room = 0
    for index in order:
        if costs[index] > room:
            batches.append([])
            room = max(TOKENS, costs[index])
        batches[-1].append(index)
        room -= costs[index]
    return batches


def sample(model: Any, prompts: Ids, seed: int, temperature: float = 1.0) -> list[list[int]]:
    """An answer to each prompt, END included where it ended; greedy where the temperature is 0. Equal prompts get answers of their own."""
    model.set_attn_implementation("sdpa")
    model.eval()
    torch.manual_seed(seed)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {"do_sample": False}
    options = GenerationConfig(max_new_tokens=MOST, eos_token_id=END, pad_token_id=PAD, **how)
    # a batch of one family has answers of about one length; within it, longest prompts first
    order = sorted(range(len(prompts)), key=lambda i: (prompts[i][0], len(prompts[i])))
    groups: dict[int, list[int]] = {}
    for index in order:
        groups.setdefault(prompts[index][0], []).append(index)
    found: list[list[int]] = [[]] * len(prompts)
    for group in groups.values():
        for start in range(0, len(group), _BATCH):
            batch = group[start : start + _BATCH]
            width = max(len(prompts[i]) for i in batch)
            ids = torch.tensor([[PAD] * (width - len(prompts[i])) + list(prompts[i]) for i in batch])
            with torch.no_grad():
                out = model.generate(input_ids=ids, attention_mask=(ids != PAD).long(), generation_config=options)
            for index, row in zip(batch, out[:, width:].tolist(), strict=True):
                found[index] = row[: row.index(END) + 1] if END in row else row
    return found
