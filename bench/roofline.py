"""What this machine can do, and what a training step asks of it: fp32 matmul and copy rates, FLOPs and bytes of a step.

    python -m bench.roofline [--home DIR] [--pairs 8]

Rates are the best of several tries on all cores. A step's FLOPs are those of the model, without recomputation: six a weight of the
decoder and token, the attended positions, and six a weight of the LM head and answer token; a forward pass alone is a third.
Its bytes are the least that have to move: weights read in the forward and the backward pass, gradients written and read, the
optimiser's state, each once a micro-batch or step, and what goes into and comes out of each layer's linear maps, written and read
once in the forward pass and twice, with the gradients, in the backward pass. Axes: L layers, D width, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_TRIES = 10
_COPIED = 64 << 20  # floats of the copied tensor: 256 MB, more than the caches hold
_FP32 = 4


def best_seconds(work: Callable[[], Any], tries: int = _TRIES) -> float:
    """The shortest of several calls, after one that warms up."""
    work()
    times = []
    for _ in range(tries):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def matmul_rate(rows: int = 2048, inner: int = 2048, columns: int = 2048) -> float:
    """FLOP/s of an fp32 product [rows, inner] · [columns, inner]ᵀ, as a linear layer has it."""
    left, right = torch.rand(rows, inner), torch.rand(columns, inner)
    return 2.0 * rows * inner * columns / best_seconds(lambda: torch.nn.functional.linear(left, right))


def copy_rate() -> float:
    """Bytes/s read and written together by a large copy."""
    source, target = torch.rand(_COPIED), torch.empty(_COPIED)
    return 2.0 * _FP32 * _COPIED / best_seconds(lambda: target.copy_(source))


@dataclass(frozen=True)
class Size:
    """What costs of a dense decoder."""

    decoder: int  # weights without embeddings and LM head
    layers: int
    width: int
    attention: int  # heads × head size
    vocabulary: int
    linear_io: int  # numbers that go into and come out of one layer's linear maps, a token

    @classmethod
    def of(cls, model: Path) -> Size:
        """From a model's config; no weights are read."""
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(model)
        with torch.device("meta"):
            meta: Any = AutoModelForCausalLM.from_config(config)
        ends = {id(meta.get_input_embeddings().weight), id(meta.get_output_embeddings().weight)}
        decoder = sum(p.numel() for p in meta.parameters() if id(p) not in ends)
        linear = [m for m in meta.get_decoder().modules() if isinstance(m, torch.nn.Linear)]
        heads = config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        per_layer = sum(m.in_features + m.out_features for m in linear) // config.num_hidden_layers
        return cls(decoder, config.num_hidden_layers, config.hidden_size, heads * size, config.vocab_size, per_layer)


@dataclass(frozen=True)
class Tokens:
    """What a set of pairs asks of the model in one pass, each prompt computed once and nothing padded."""

    computed: int  # the last token of an answer predicts nothing, so it is not computed
    attended: int  # (query, key) positions
    answers: int  # positions that the LM head computes

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> Tokens:
        """Pairs with prompt_ids, real_ids, generated_ids."""
        computed = attended = answers = 0
        for row in rows:
            prompt = len(row["prompt_ids"])
            computed += prompt
            attended += prompt * (prompt + 1) // 2
            for size in (len(row["real_ids"]), len(row["generated_ids"])):
                computed += size - 1
                attended += (size - 1) * prompt + size * (size - 1) // 2
                answers += size
        return cls(computed, attended, answers)


def step_flops(size: Size, tokens: Tokens) -> float:
    """FLOPs of a forward and backward pass over `tokens`; the forward pass is a third of them."""
    attention = 12.0 * size.layers * size.attention * tokens.attended
    return 6.0 * size.decoder * tokens.computed + attention + 6.0 * size.width * size.vocabulary * tokens.answers


def iteration_flops(size: Size, rows: list[dict[str, Any]], epochs: int) -> float:
    """FLOPs of the reference pass and of `epochs` passes of training."""
    return step_flops(size, Tokens.of(rows)) * (epochs + 1 / 3)


def step_bytes(size: Size, tokens: Tokens, micro_batches: int) -> dict[str, float]:
    """Bytes of an optimiser step in fp32, by cause."""
    weights = _FP32 * (size.decoder + size.width * size.vocabulary)
    return {
        "weights": 2.0 * weights * micro_batches,
        "gradients": 2.0 * weights * micro_batches,
        "optimiser": 5.0 * weights,  # RMSProp: state read and written, gradient read, weights read and written
        "activations": 2.0 * 3 * _FP32 * tokens.computed * size.layers * size.linear_io,
    }


def main() -> None:
    """Measures, prints readable lines and one JSON line."""
    from bench.training_data import make_sets
    from spin_core.store import Store

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path("~/.spinflow"), help="the store that bench.training uses")
    parser.add_argument("--pairs", type=int, default=8)
    options = parser.parse_args()
    (pairs,) = make_sets(Store(options.home), ["main"], options.pairs)
    size, tokens = Size.of(pairs.model.path), Tokens.of(pairs.rows)
    width, inner = size.width, json.loads((pairs.model.path / "config.json").read_text())["intermediate_size"]
    shapes = {"square 2048": (2048,) * 3, "attention": (1024, width, size.attention), "up": (1024, width, inner)}
    shapes |= {"down": (1024, inner, width), "LM head": (1024, width, size.vocabulary)}
    rates = {name: matmul_rate(*shape) for name, shape in shapes.items()}
    for name, rate in rates.items():
        print(f"matmul {name} {shapes[name]}: {rate / 1e9:.1f} GFLOP/s", flush=True)
    copied, flops = copy_rate(), step_flops(size, tokens)
    moved = step_bytes(size, tokens, micro_batches=-(-tokens.computed // 1024))
    print(f"copy: {copied / 1e9:.1f} GB/s")
    print(f"a step of {options.pairs} pairs, {tokens}: {flops / 1e12:.2f} TFLOP, {sum(moved.values()) / 1e9:.1f} GB")
    result = {
        "bench": "roofline",
        "device": f"{platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {"torch": torch.__version__},
        "matmul_gflops": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
        "copy_gb_per_s": round(copied / 1e9, 1),
        "step_tflop": round(flops / 1e12, 3),
        "step_gb": {name: round(value / 1e9, 2) for name, value in moved.items()},
        "seconds_at_matmul_rate": round(flops / rates["square 2048"], 1),
        "seconds_at_copy_rate": round(sum(moved.values()) / copied, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
