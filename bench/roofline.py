"""What this machine can do, and what a training step asks of it: fp32 matmul and copy rates, FLOPs and bytes of a step.

    python -m bench.roofline [--home DIR] [--pairs 8]

Rates are the best of several tries on all cores. A step's FLOPs are those of the model (see `spin_core.lm.meter`): each prompt
computed once, the LM head on answers only, no padding, nothing recomputed; a forward pass alone is a third.
Its bytes are the least that have to move: weights read in the forward and the backward pass, gradients written and read, the
optimiser's state, each once a micro-batch or step, and what goes into and comes out of each layer's linear maps, written and read
once in the forward pass and twice, with the gradients, in the backward pass.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.facts import facts
from spin_core.lm.meter import Work, cost_of
from spin_core.lm.packing import pack

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


def without_weights(model: Path) -> Any:
    """The model's modules on the meta device: sizes, no weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))


def work_of(rows: list[dict[str, Any]]) -> Work:
    """What pairs with prompt_ids, real_ids, generated_ids ask of the model in one pass, packed."""
    answers = [row[side] for side in ("real_ids", "generated_ids") for row in rows]
    return pack([row["prompt_ids"] for row in rows] * 2, answers).work()


def step_flops(model: Path, rows: list[dict[str, Any]]) -> float:
    """FLOPs of a forward and backward pass over the pairs; the forward pass is a third of them."""
    cost = cost_of(without_weights(model))
    assert cost is not None, "the bench's models are dense"
    return cost.flops(work_of(rows))


def iteration_flops(model: Path, rows: list[dict[str, Any]], epochs: int) -> float:
    """FLOPs of the reference pass and of `epochs` passes of training."""
    return step_flops(model, rows) * (epochs + 1 / 3)


def step_bytes(model: Path, rows: list[dict[str, Any]], micro_batches: int) -> dict[str, float]:
    """Bytes of an optimiser step in fp32, by cause."""
    bare = without_weights(model)
    weights = _FP32 * sum(p.numel() for p in bare.parameters())
    maps = [module for module in bare.get_decoder().modules() if isinstance(module, torch.nn.Linear)]
    return {
        "weights": 2.0 * weights * micro_batches,
        "gradients": 2.0 * weights * micro_batches,
        "optimiser": 5.0 * weights,  # RMSProp: state read and written, gradient read, weights read and written
        "activations": 2.0 * 3 * _FP32 * work_of(rows).tokens * sum(m.in_features + m.out_features for m in maps),
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
    model, work = pairs.model.path, work_of(pairs.rows)
    config = json.loads((model / "config.json").read_text())
    width, inner = config["hidden_size"], config["intermediate_size"]
    shapes = {"square": (2048, 2048, 2048), "q and o": (1024, width, width), "gate and up": (1024, width, inner)}
    shapes |= {"down": (1024, inner, width), "LM head": (1024, width, config["vocab_size"])}
    rates = {name: matmul_rate(*shape) for name, shape in shapes.items()}
    for name, rate in rates.items():
        print(f"matmul {name} {shapes[name]}: {rate / 1e9:.1f} GFLOP/s", flush=True)
    copied, flops = copy_rate(), step_flops(model, pairs.rows)
    moved = step_bytes(model, pairs.rows, -(-work.tokens // pairs.recipe.training.tokens_per_micro_batch))
    print(f"copy: {copied / 1e9:.1f} GB/s")
    print(f"a step of {options.pairs} pairs, {work}: {flops / 1e12:.2f} TFLOP, {sum(moved.values()) / 1e9:.1f} GB")
    result = {
        **facts("roofline", "torch"),
        "matmul_gflops": {name: round(rate / 1e9, 1) for name, rate in rates.items()},
        "copy_gb_per_s": round(copied / 1e9, 1),
        "step_tflop": round(flops / 1e12, 3),
        "step_gb": {name: round(value / 1e9, 2) for name, value in moved.items()},
        "seconds_at_matmul_rate": round(flops / rates["square"], 1),
        "seconds_at_copy_rate": round(sum(moved.values()) / copied, 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
