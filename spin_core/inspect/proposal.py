"""What `spinflow init` proposes: sizes and limits from what was seen of the model, the data and the machine. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_ACTIVATIONS = 34.0  # bytes a token, layer and channel in bf16 (arXiv 2205.05198)
_LOGITS = 8.0  # bytes a token and vocabulary entry: fp32, and its gradient
_ANSWER = 64  # tokens: a model's own answers are longer than short human ones at first, and those that are cut are told apart by that
_LARGE, _MIDDLE = 3e9, 1e9  # parameters


@dataclass(frozen=True)
class Seen:
    """What was looked at."""

    parameters: int
    width: int
    layers: int
    vocabulary: int
    positions: int | None
    memory: float  # bytes that a training process gets: a GPU's, or what the machine has free
    gpu: bool
    rows: int  # that can be used
    prompt: Mapping[str, int]  # tokens by percentile, "50" … "100"
    answer: Mapping[str, int]


@dataclass(frozen=True)
class Numbers:
    """What is proposed."""

    max_prompt_tokens: int
    max_new_tokens: int
    test_size: int
    validation_size: int
    shard_rows: int
    pairs_per_step: int
    learning_rate: str
    micro_batch: int
    checkpointing: bool
    lora: bool


def propose(seen: Seen) -> Numbers:
    """Lengths that 95 to 99 rows of 100 fit in, held-out sets that leave most rows to train on, a batch that fits the memory."""
    human = seen.answer["100"] if seen.answer["100"] <= 1.25 * seen.answer["95"] else seen.answer["95"]
    answer = _up(max(human, _ANSWER), 16)
    prompt = _up(seen.prompt["100"] if seen.prompt["100"] <= 1.25 * seen.prompt["99"] else seen.prompt["99"], 32)
    if seen.positions:
        answer = min(answer, max(1, seen.positions // 2))
        prompt = min(prompt, seen.positions - answer)
    test = _between(1, seen.rows // 10 if seen.rows >= 1000 else seen.rows // 5, 500)
    validation = _between(1, seen.rows // 20 if seen.rows >= 1000 else seen.rows // 8, 200)
    train = max(1, seen.rows - test - validation)
    lora = 12.0 * seen.parameters > 0.8 * seen.memory  # fp32 weights, gradient, RMSProp's moment
    room = 0.6 * (seen.memory - (6.0 if lora else 14.0) * seen.parameters)
    a_token = (1.0 if seen.gpu else 2.0) * _ACTIVATIONS * seen.layers * seen.width + _LOGITS * seen.vocabulary
    longest = prompt + 2 * answer
    checkpointing = room / a_token < longest
    if checkpointing:
        a_token = 2.0 * (1.0 if seen.gpu else 2.0) * seen.layers * seen.width + _LOGITS * seen.vocabulary
    micro = _power(_between(256, int(room / a_token), 16384 if seen.gpu else 2048))
    return Numbers(
        max_prompt_tokens=prompt,
        max_new_tokens=answer,
        test_size=test,
        validation_size=validation,
        shard_rows=_power(_between(8, train // 16, 512)),
        pairs_per_step=_power(_between(4, train // 10, 64)),
        learning_rate="2.0e-5" if lora else "5.0e-7" if seen.parameters >= _LARGE else "1.0e-6" if seen.parameters >= _MIDDLE else "2.0e-6",
        micro_batch=micro,
        checkpointing=checkpointing,
        lora=lora,
    )


def width_and_layers(config: Mapping[str, Any]) -> tuple[int, int]:
    """Channels and layers that a config.json names, by the names of the larger families."""
    width = next((int(config[name]) for name in ("hidden_size", "n_embd", "d_model") if config.get(name)), 1024)
    layers = next((int(config[name]) for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") if config.get(name)), 24)
    return width, layers


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))


def _up(value: int, step: int) -> int:
    return -(-value // step) * step


def _power(value: int) -> int:
    """The largest power of two that is no more."""
    return 1 << (value.bit_length() - 1)
