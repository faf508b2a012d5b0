"""Training speed: an iteration of `spin_core.training` against TRL's `DPOTrainer` on the same pairs, SmolLM2-135M in fp32 on the CPU.

    python -m bench.training                  # about 35 minutes on two cores, after the answers were sampled once
    python -m bench.training --quick          # one repetition, 2 pairs: does it run, not a measurement
    python -m bench.training --sweep          # the batch size that suits the tuned peer
    python -m bench.training --ladder         # what each lever brings

What is measured: the reference log-probs and two epochs, over real conversations with answers that the model sampled (see
`bench.training_data`). All sides have the same token ids, fp32, optimiser, learning rate and pairs a step (one step an epoch, so that
the second step's loss is comparable whatever the order of the pairs); it is checked that every side starts at ln 2 and falls alike.
Sides: `ours`, the stages `score` and `finetune`, against `trl_default`, TRL as installed, both recomputing activations in the
backward pass; `ours_tuned`, which keeps them and has micro-batches of 2,048 tokens, against `trl_tuned`, which keeps them too, takes
reference log-probs once, before training, groups by length and has the batch size that was fastest (see --sweep and
`bench.training_peers`). Every run is a process of
its own with all cores; the order of the sides turns round with each repetition, and a repetition's ratio is that of its own runs.

Compute seconds, which the ratios use, exclude interpreter start, imports and loading the model on every side, and saving on
ours: TRL saves nothing here. Ours are the scorer's and the trainer's own clocks (from the loaded model to the last scored pair, from
the trainer's construction to the last step), TRL's are the reference pass and `train()`. With these few pairs start-up would be a
quarter of the time; wall seconds, from the start of a side to its end, checkpoint and artifacts of ours included, are printed beside
them. Memory is the largest resident size of a process (VmHWM), whatever it held. MFU is the model's FLOPs over the compute seconds
of `ours_tuned` and this machine's fp32 matmul rate: of the tokens that the packed layout computes and the LM head on answers only, a
third for the reference pass, nothing for recomputation (see `bench.roofline`).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bench.facts import facts
from bench.peak import ChildPeak
from bench.roofline import iteration_flops, matmul_rate
from bench.training_data import ROOT, SETS, PairSet, make_sets
from bench.training_peers import MARK
from spin_core.recipe import with_overrides
from spin_core.runtime import devices, progress
from spin_core.store import Store
from tests.stages import finetune, score

_SIDES = {
    "main": ("ours", "trl_default", "ours_tuned", "trl_tuned"),
    "long": ("ours", "trl_default"),
    "carry": ("ours", "trl_default"),
}
# the ratio's name: the set, ours and theirs
_RATIOS = {
    "vs_trl_default": ("main", "ours", "trl_default"),
    "vs_trl_tuned": ("main", "ours_tuned", "trl_tuned"),
    "long_context_vs_trl_default": ("long", "ours", "trl_default"),
    "carry_over_vs_trl_default": ("carry", "ours", "trl_default"),
}
# speed and memory only, the results are the same
_OURS = {
    "ours": ["training.gradient_checkpointing=true", "training.tokens_per_micro_batch=1024"],
    "ours_tuned": ["training.gradient_checkpointing=false", "training.tokens_per_micro_batch=2048"],
}
# one lever less each
_WITHOUT = {
    "prompts computed twice, padded": ["training.backend=trl"],
    "a pair a micro-batch": ["training.tokens_per_micro_batch=1"],
    "activations recomputed": ["training.gradient_checkpointing=true"],
}
_STAGES = "spin_core."  # what the command lines of the stages' processes hold
_LN2_TOLERANCE = 1e-3
_FALL_TOLERANCE = 0.1  # of the fall from ln 2: RMSProp's first step is a sign, which rounding can turn where a gradient is about 0


@dataclass(frozen=True)
class Run:
    """One iteration by one side."""

    seconds: float  # compute
    wall_s: float
    reference_s: float  # of `seconds`; 0 where the reference is computed in the steps
    peak_mb: float
    losses: list[float]  # one a step

    def line(self) -> str:
        """For people."""
        losses = " → ".join(f"{loss:.4f}" for loss in self.losses)
        times = f"{self.seconds:.1f} s of compute ({self.reference_s:.1f} s reference), {self.wall_s:.1f} s wall"
        return f"{times}, {self.peak_mb / 1024:.2f} GiB, loss {losses}"


def run_ours(pairs: PairSet, peak: ChildPeak, settings: list[str]) -> Run:
    """The two stages with overrides of the recipe, in a store that holds nothing yet."""
    recipe = with_overrides(pairs.recipe, settings)
    with tempfile.TemporaryDirectory(prefix="bench-training-") as folder:
        store, peak.mb = Store(Path(folder)), 0.0
        started = time.perf_counter()
        reference = score(store, recipe, pairs.model, pairs.pairs, splits=("train",))
        model = finetune(store, recipe, int(pairs.name == "carry"), pairs.model, pairs.pairs, reference)
        wall = time.perf_counter() - started
        lines = [json.loads(line) for line in (model.path / "metrics.jsonl").read_text().splitlines()]
        reference_s = len(pairs.rows) / reference.facts["pairs_per_s"]
    training_s = sum(pairs.recipe.training.pairs_per_step / line["pairs/s"] for line in lines)
    return Run(reference_s + training_s, wall, reference_s, peak.mb, [line["loss"] for line in lines])


def tuned(batch: int) -> dict[str, Any]:
    """TRL's settings of the tuned side."""
    once = {"precompute_ref_log_probs": True, "gradient_checkpointing": False}
    return once | {"train_sampling_strategy": "group_by_length", "per_device_train_batch_size": batch}


def run_trl(pairs: PairSet, tuning: dict[str, Any]) -> Run:
    """TRL in a child with as many threads as ours; raises RuntimeError with what it said last."""
    job = {"model": str(pairs.model.path), "rows": pairs.rows, "longest": pairs.longest}
    job |= {"training": pairs.recipe.training.model_dump(), "tuning": tuning}
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(job, file)
        file.flush()
        started = time.perf_counter()
        command = [sys.executable, "-m", "bench.training_peers", file.name]
        threads = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=os.environ | threads)
        wall = time.perf_counter() - started
    found = [line[len(MARK) :] for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not found:
        raise RuntimeError(f"TRL with {tuning} ended with status {done.returncode}: {done.stderr[-1000:]}")
    result = json.loads(found[0])
    return Run(result["reference_s"] + result["training_s"], wall, result["reference_s"], result["peak_mb"], result["losses"])


def check_same_work(pairs: PairSet, runs: dict[str, Run]) -> None:
    """Raises SystemExit unless all sides take as many steps, start at ln 2 and fall by the same loss."""
    ours = runs["ours"].losses
    for side, run in runs.items():
        if len(run.losses) != len(ours) or abs(run.losses[0] - math.log(2.0)) > _LN2_TOLERANCE:
            raise SystemExit(f"{pairs.name}, {side}: losses {run.losses} do not start at ln 2, or are not as many as ours {ours}")
        if abs(run.losses[-1] - ours[-1]) > _FALL_TOLERANCE * abs(math.log(2.0) - ours[-1]):
            raise SystemExit(f"{pairs.name}, {side}: the last loss is {run.losses[-1]:.4f}, ours {ours[-1]:.4f}: not the same work")


def measure(pairs: PairSet, repetitions: int, batch: int) -> dict[str, list[Run]]:
    """Every side's runs, alternating."""
    sides = _SIDES[pairs.name]
    runs: dict[str, list[Run]] = {side: [] for side in sides}
    peak = ChildPeak(_STAGES)
    for number in range(repetitions):
        for side in sides if number % 2 == 0 else reversed(sides):
            settings = tuned(batch) if side == "trl_tuned" else {}
            run = run_ours(pairs, peak, _OURS[side]) if side in _OURS else run_trl(pairs, settings)
            runs[side].append(run)
            print(f"{pairs.name} {number + 1}/{repetitions} {side}: {run.line()}", flush=True)
        check_same_work(pairs, {side: found[-1] for side, found in runs.items()})
    return runs


def _middle(values: list[float], digits: int = 3) -> tuple[float, list[float]]:
    """Median and [least, most]."""
    return round(statistics.median(values), digits), [round(min(values), digits), round(max(values), digits)]


def summarise(
    sets: list[PairSet], measured: dict[str, dict[str, list[Run]]], rate: float
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """(ratios, spread) by name; what was not measured is not there. `rate` is the machine's, in FLOP/s."""
    values: dict[str, list[float]] = {}
    for ratio, (name, ours, theirs) in _RATIOS.items():
        if name in measured:
            both = zip(measured[name][ours], measured[name][theirs], strict=True)
            values[ratio] = [their.seconds / our.seconds for our, their in both]
    for pairs in [pairs for pairs in sets if pairs.name == "main"]:
        both = zip(measured["main"]["ours"], measured["main"]["trl_default"], strict=True)
        values["memory_vs_trl_default"] = [our.peak_mb / their.peak_mb for our, their in both]
        flops = iteration_flops(pairs.model.path, pairs.rows, pairs.recipe.training.epochs)
        values["mfu"] = [flops / run.seconds / rate for run in measured["main"]["ours_tuned"]]
    middles = {name: _middle(found) for name, found in values.items()}
    return {name: middle for name, (middle, _) in middles.items()}, {name: spread for name, (_, spread) in middles.items()}


def sweep(pairs: PairSet) -> None:
    """Prints what the tuned peer takes with every batch size that divides the step."""
    for batch in [number for number in (1, 2, 4, 8, 16) if len(pairs.rows) % number == 0]:
        print(f"tuned, batch {batch}: {run_trl(pairs, tuned(batch)).line()}", flush=True)


def ladder(pairs: PairSet, batch: int) -> None:
    """Prints what each lever brings: TRL as installed, then one setting more a line; ours tuned, then with one lever less a line."""
    step: dict[str, Any] = {}
    print(f"TRL as installed: {run_trl(pairs, step).line()}", flush=True)
    for name, value in tuned(batch).items():
        step |= {name: value}
        print(f"+ {name}={value}: {run_trl(pairs, step).line()}", flush=True)
    peak = ChildPeak(_STAGES)
    whole = run_ours(pairs, peak, _OURS["ours_tuned"])
    print(f"ours_tuned: {whole.line()}", flush=True)
    for name, settings in _WITHOUT.items():
        run = run_ours(pairs, peak, [*_OURS["ours_tuned"], *settings])
        print(f"but {name}: {run.seconds / whole.seconds:.2f} times as long: {run.line()}", flush=True)
    with patch.object(devices, "environment", lambda group: {}):
        run = run_ours(pairs, peak, _OURS["ours_tuned"])
    print(f"but freed memory given back: {run.seconds / whole.seconds:.2f} times as long: {run.line()}", flush=True)


def main() -> None:
    """Measures and prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--pairs", type=int, default=8, help="pairs of the main set; half as many with carry-over, a quarter with long contexts"
    )
    parser.add_argument("--repetitions", type=int, default=3, help="of the main set; the others have one less, at least one")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--tuned-batch", type=int, default=1, help="pairs in a batch of the tuned peer; see --sweep")
    parser.add_argument("--home", type=Path, default=Path("~/.spinflow"), help="the store that keeps the model and the sampled answers")
    parser.add_argument("--quick", action="store_true", help="one repetition with 2 pairs")
    parser.add_argument("--sweep", action="store_true", help="try batch sizes of the tuned peer and end")
    parser.add_argument("--ladder", action="store_true", help="what each lever brings: TRL with one more a run, ours with one less")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.repetitions = 2, 1
    end = progress.listen(lambda event: print(f"{event.name}: {event.note}", flush=True) if event.done == event.total else None)
    sets = make_sets(Store(options.home), ["main"] if options.sweep or options.ladder else options.sets, options.pairs)
    end()
    for pairs in sets:
        print(pairs.describe(), flush=True)
    if options.sweep or options.ladder:
        sweep(sets[0]) if options.sweep else ladder(sets[0], options.tuned_batch)
        return
    rates = [matmul_rate()]
    measured: dict[str, dict[str, list[Run]]] = {}
    for pairs in sets:
        repetitions = options.repetitions if pairs.name == "main" else max(1, options.repetitions - 1)
        measured[pairs.name] = measure(pairs, repetitions, options.tuned_batch)
    rates.append(matmul_rate())  # the machine may have been busy at one end
    ratios, spread = summarise(sets, measured, max(rates))
    print(json.dumps(report(options, sets, measured, ratios, spread, rates)))


def report(
    options: argparse.Namespace,
    sets: list[PairSet],
    measured: dict[str, dict[str, list[Run]]],
    ratios: dict[str, float],
    spread: dict[str, list[float]],
    rates: list[float],
) -> dict[str, Any]:
    """What the bench ends with."""
    return {
        **facts("training", "torch", "transformers", "accelerate", "trl"),
        "sets": {pairs.name: pairs.describe() for pairs in sets},
        "tuned_batch": options.tuned_batch,
        "matmul_gflops": [round(rate / 1e9, 1) for rate in rates],
        "ratios": ratios,
        "spread": spread,
        "runs": {name: {side: [asdict(run) for run in found] for side, found in sides.items()} for name, sides in measured.items()},
    }


if __name__ == "__main__":
    main()
