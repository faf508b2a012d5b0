"""An iteration of SPIN training on one GPU: packed against TRL tuned, on a random-weight Llama. Exactness first.

    python -m bench.gpu.training                 # under ten minutes on an H100
    python -m bench.gpu.training --cpu-smoke     # the same program in tiny sizes, without a GPU; its numbers mean nothing

Needs torch, transformers, accelerate and this repository; without trl only the packed side runs. Lengths are drawn like those of
chat data (prompts ≤ 512, answers ≤ 256), ids at random: what a step costs does not depend on them. An iteration is the reference
pass and two epochs; pairs/s counts both. TRL tuned: reference log-probs once, no gradient checkpointing, batches grouped by length,
the largest batch that fits. Sides alternate, each builds its model anew. MFU: real tokens, LM head where it runs, data sheet's peak.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, TrainingArguments

from bench.facts import commit, versions
from bench.gpu.exactness import check
from bench.training_peers import given_ids, trainer_on_given_ids
from spin_core.lm.attention import set_attention
from spin_core.lm.logprobs import answer_logps
from spin_core.lm.meter import cost_of, peak_flops, peak_memory_gb
from spin_core.lm.packing import Packed, pack
from spin_core.training.objectives import Sigmoid
from spin_core.training.plan import Sizes, plan
from spin_core.training.schedule import Schedule
from spin_core.training.trainer import SpinTrainer, collate_pairs, score_answers_in_forward

ROOT = Path(__file__).parents[2]
_BYTES = 16  # a weight of a full fine-tuning: fp32 weight, gradient and second moment, and room for activations
_BETA = 0.1
_IDS = ("prompt_ids", "real_ids", "generated_ids")


def _llama(hidden: int, inner: int, layers: int, heads: int, grouped: int, vocabulary: int = 32000) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=grouped,
        max_position_embeddings=2048,
    )


# name → config, pairs, repetitions
MODELS = {"1.5B": (_llama(2048, 8192, 22, 16, 8), 512, 3), "7B": (_llama(4096, 11008, 32, 32, 32), 128, 1)}
SMOKE = {"tiny": (_llama(64, 128, 2, 4, 2, vocabulary=256), 16, 2)}


def make_rows(count: int, vocabulary: int, scale: float) -> list[dict[str, Any]]:
    """Pairs with log-normal lengths, medians 120 and 150 tokens; `scale` shrinks them all."""
    rng = random.Random(0)

    def ids(median: float, most: int) -> list[int]:
        length = min(most, max(2, round(rng.lognormvariate(0.0, 0.8) * median)))
        return [rng.randrange(3, vocabulary) for _ in range(max(2, round(length * scale)))]

    return [
        {"row_id": str(n), "prompt_ids": ids(120, 512), "real_ids": ids(150, 256), "generated_ids": ids(150, 256)} for n in range(count)
    ]


class Bench:
    """One model size on one device."""

    def __init__(self, config: LlamaConfig, rows: list[dict[str, Any]], pairs_per_step: int, tokens: int) -> None:
        self.config, self.rows, self.pairs_per_step, self.tokens = config, rows, pairs_per_step, tokens
        self.gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if self.gpu else "cpu")
        lengths = np.array([[len(row[name]) for name in _IDS] for row in rows])
        self.sizes = Sizes(np.arange(len(rows)), *lengths.T)

    def model(self) -> Any:
        """Random weights, fp32, made on the device."""
        torch.manual_seed(0)
        with self.device:
            return AutoModelForCausalLM.from_config(copy.deepcopy(self.config), dtype=torch.float32)  # a side writes into it

    def arguments(self, folder: str, **more: Any) -> dict[str, Any]:
        """What both sides train with."""
        common = {"output_dir": folder, "learning_rate": 5e-7, "optim": "rmsprop", "lr_scheduler_type": "linear", "bf16": self.gpu}
        common |= {"use_cpu": not self.gpu, "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True}
        return common | more

    def clock(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.gpu:
            torch.cuda.synchronize()
        return time.perf_counter()

    def packed(self, folder: str) -> dict[str, float]:
        """Reference pass and two epochs of the packed backend."""
        model = self.model()
        set_attention(model, "auto", bf16=self.gpu)
        cut: dict[str, Any] = {"seed": 0, "group_rows": True, "tokens": self.tokens, "world": 1}
        scoring = plan(self.sizes, pairs_per_step=len(self.rows), epochs=1, **cut)
        steps = plan(self.sizes, pairs_per_step=self.pairs_per_step, epochs=2, **cut)
        started = self.clock()
        rows = [dict(row) for row in self.rows]
        for indices in scoring.steps[0]:
            self._score(model, [rows[i] for i in indices])
        scored = self.clock()
        score_answers_in_forward(model)
        settings = self.arguments(folder, num_train_epochs=1, per_device_train_batch_size=1, gradient_accumulation_steps=steps.accumulation)
        trainer = SpinTrainer(model, args=TrainingArguments(**settings), data_collator=collate_pairs, train_dataset=rows)
        rates = Schedule("linear", warmup=1, steps=len(steps.steps))  # warm-up of one step: none, as TRL's default
        trainer.follow(steps, Sigmoid(beta=_BETA), rates, self.gpu)
        begun = self.clock()
        trainer.train()
        ended = self.clock()
        cost, peak = cost_of(model), peak_flops(self.device, self.gpu)
        assert cost is not None
        work = [collate_pairs([rows[i] for i in batch])["work"] for batch in steps.batches(0)]
        mfu = sum(map(cost.flops, work)) / (ended - begun) / peak
        return {"reference_s": scored - started, "training_s": ended - begun, "mfu": mfu}

    def _score(self, model: Any, rows: list[dict[str, Any]]) -> None:
        prompts = [row["prompt_ids"] for row in rows]
        batch: Packed = pack(prompts * 2, [row["real_ids"] for row in rows] + [row["generated_ids"] for row in rows]).to(self.device)
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.gpu):
            real_B, generated_B = answer_logps(model, batch).chunk(2)
        for row, real, generated in zip(rows, real_B.tolist(), generated_B.tolist(), strict=True):
            row["reference_real"], row["reference_generated"] = real, generated

    def trl(self, folder: str, batch: int, rows: list[dict[str, Any]] | None = None) -> dict[str, float]:
        """Reference pass and two epochs of TRL's own trainer on the same ids."""
        from tokenizers import Tokenizer, models
        from trl import DPOConfig

        tuned = {"precompute_ref_log_probs": True, "precompute_ref_batch_size": batch, "gradient_checkpointing": False}
        tuned |= {"train_sampling_strategy": "group_by_length", "remove_unused_columns": False, "max_length": None, "beta": _BETA}
        settings = self.arguments(folder, num_train_epochs=2, per_device_train_batch_size=batch, **tuned)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1}, "<pad>")), pad_token="<pad>", eos_token="<eos>"
        )
        config = DPOConfig(**settings, gradient_accumulation_steps=self.pairs_per_step // batch)
        trainer = trainer_on_given_ids(self.clock)(
            model=self.model(), args=config, train_dataset=given_ids(rows or self.rows), processing_class=tokenizer
        )
        started = self.clock()
        trainer.train()
        seconds = self.clock() - started
        return {"reference_s": trainer.reference_s, "training_s": seconds}

    def largest_trl_batch(self, folder: str) -> int | None:
        """The largest batch whose longest pairs train without running out of memory."""
        longest = sorted(self.rows, key=lambda row: -sum(len(row[name]) for name in _IDS))
        for batch in (size for size in (32, 16, 8, 4, 2, 1) if self.pairs_per_step % size == 0):
            try:
                self.measured(lambda size=batch: self.trl(folder, size, longest[: self.pairs_per_step]))
                return batch
            except torch.OutOfMemoryError:
                continue
        return None

    def measured(self, side: Callable[[], dict[str, float]]) -> dict[str, float]:
        """`side` on a clean device, with pairs/s over two epochs and the reference pass, and its peak memory."""
        try:
            gc.collect()
            if self.gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            found = side()
            found["pairs_per_s"] = 2 * len(self.rows) / (found["reference_s"] + found["training_s"])
            found["peak_gb"] = peak_memory_gb(self.device)
            return found
        finally:
            gc.collect()


def compare(name: str, bench: Bench, repetitions: int, with_trl: bool) -> dict[str, Any]:
    """Medians of both sides and the ratios of each repetition."""
    runs: dict[str, list[dict[str, float]]] = {"packed": [], "trl": []}
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        batch = bench.largest_trl_batch(folder) if with_trl else None
        bench.measured(lambda: bench.packed(folder))  # compiles, allocates, finds kernels
        for number in range(repetitions):
            for side in ("packed", "trl") if number % 2 == 0 else ("trl", "packed"):
                if side == "packed":
                    runs[side].append(bench.measured(lambda: bench.packed(folder)))
                elif batch:
                    runs[side].append(bench.measured(lambda: bench.trl(folder, batch)))
                else:
                    continue
                shown = "  ".join(f"{key} {value:.3g}" for key, value in runs[side][-1].items())
                print(f"{name} {side:7s}{shown}", flush=True)
    result: dict[str, Any] = {side: {key: round(_median(found, key), 4) for key in found[0]} for side, found in runs.items() if found}
    if batch:
        ratios = [ours["pairs_per_s"] / theirs["pairs_per_s"] for ours, theirs in zip(*runs.values(), strict=True)]
        memory = _median(runs["packed"], "peak_gb") / _median(runs["trl"], "peak_gb")
        result |= {"trl_batch": batch, "ratios": {"vs_trl_tuned": round(statistics.median(ratios), 3)}}
        result["ratios"]["memory_vs_trl_tuned"] = round(memory, 3)
        result["spread"] = {"vs_trl_tuned": [round(min(ratios), 3), round(max(ratios), 3)]}
    return result


def _median(runs: list[dict[str, float]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu-smoke", action="store_true", help="tiny sizes on the CPU: shows that the program runs, measures nothing")
    options = parser.parse_args()
    if not options.cpu_smoke and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --cpu-smoke runs the program in tiny sizes")
    started = time.perf_counter()
    device = torch.device("cpu" if options.cpu_smoke else "cuda")
    exact = check(device, *((4, 20) if options.cpu_smoke else ()))
    with_trl = bool(find_spec("trl") and find_spec("datasets"))
    found: dict[str, Any] = {}
    for name, (config, pairs, repetitions) in (SMOKE if options.cpu_smoke else MODELS).items():
        weights = cost_weights(config)
        if device.type == "cuda" and weights * _BYTES > torch.cuda.mem_get_info()[0]:
            found[name] = f"not run: {weights * _BYTES / 1e9:.0f} GB are needed"
            continue
        rows = make_rows(pairs, config.vocab_size, 0.1 if options.cpu_smoke else 1.0)
        bench = Bench(config, rows, min(64, pairs // 2), 512 if options.cpu_smoke else 16384)
        found[name] = compare(name, bench, repetitions, with_trl)
    result = {
        "bench": "gpu-training" + ("-cpu-smoke" if options.cpu_smoke else ""),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, no GPU",
        "versions": versions("torch", "transformers", "accelerate", "trl"),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "exactness": exact,
        "models": found,
        "seconds": round(time.perf_counter() - started),
    }
    print(json.dumps(result))


def cost_weights(config: LlamaConfig) -> int:
    """Parameters of a model, without making it."""
    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(config).num_parameters())


if __name__ == "__main__":
    main()
