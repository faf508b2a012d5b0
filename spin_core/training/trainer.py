"""The SPIN step on `transformers.Trainer`: ids in, reference from the artifact, one model in memory."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from spin_core.lm.logprobs import answer_logps
from spin_core.lm.meter import Work, cost_of, peak_flops, peak_memory_gb
from spin_core.lm.packing import Packed, pack
from spin_core.runtime.errors import SpinflowError
from spin_core.runtime.progress import Progress, print_event
from spin_core.training.files import cut_after
from spin_core.training.objectives import Newer, Objective, Pairs
from spin_core.training.plan import Plan
from spin_core.training.schedule import Schedule

_STEP0_NATS = {"fp32": 0.01, "bf16": 0.5}  # by which a log-prob of the policy may differ from the reference's


class PlannedTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that follows a plan of micro-batches, and logs the same metrics whatever its loss comes from.

    The loss is averaged over all pairs of an optimiser step, however they are cut and spread over devices.
    """

    plan: Plan
    objective: Objective
    schedule: Schedule
    bf16: bool
    lr_scheduler: LambdaLR | None
    loss_is_scaled_for_ga = True  # by `scaled`

    def follow(self, plan: Plan, objective: Objective, schedule: Schedule, bf16: bool) -> None:
        """Sets what is trained on, for what and how fast, before `train`."""
        self.plan, self.objective, self.schedule, self.bf16 = plan, objective, schedule, bf16
        self._tokens = self._flops = 0.0
        self._checked = False
        self._clock = time.monotonic()
        self._cost = cost_of(self.model)
        self._peak = peak_flops(self.args.device, bf16) if self._cost else math.inf

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This device's micro-batches. Nothing is left to shard or shuffle, so accelerate does not wrap it."""
        batches = self.plan.batches(self.args.process_index)
        return DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The plan's own learning rates; a scheduler counts the steps that are done."""
        if self.lr_scheduler is None:
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, lambda done: self.schedule.share(done + 1))
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        return self.plan.pairs(self.state.global_step)

    def scaled(self, loss_sum: Tensor) -> Tensor:
        """The micro-batch's share of the step's mean loss. DDP and FSDP average over devices, hence the factor."""
        share: float = self.args.world_size / self.plan.pairs(self.state.global_step)
        return loss_sum * share

    @property
    def idle(self) -> bool:
        """Whether this device's micro-batch is a stand-in: it is computed to stay in step with the others, and counts nothing."""
        return self.plan.idle(self.state.global_step, self.args.process_index)

    def count(self, work: Work) -> None:
        """Adds a micro-batch to the account of tokens and FLOPs."""
        self._tokens += work.tokens
        self._flops += self._cost.flops(work) if self._cost else 0.0

    def check_step0(self, loss_B: Tensor, pairs: Pairs) -> None:
        """At the first step the policy is the reference, so every loss is what the objective says it is there (ln 2 for sigmoid).

        Packing, masking and tokenisation mistakes are silent otherwise. `loss_B` may be the mean of the micro-batch, [1].
        """
        if self._checked or self.state.global_step:
            return
        self._checked = True
        expected_B, slope_B = self.objective.at_reference(pairs)
        if len(loss_B) < len(expected_B):
            expected_B, slope_B = expected_B.mean()[None], slope_B.mean()[None]
        rounding_B = 1e-6 * (1.0 + expected_B.abs())  # of the loss itself, where β is tiny
        excess_B = (loss_B - expected_B).abs() / (_STEP0_NATS["bf16" if self.bf16 else "fp32"] * slope_B + rounding_B)
        worst = int(excess_B.nan_to_num(math.inf).argmax())
        if not float(excess_B[worst]) <= 1.0:
            told = f"a pair's loss is {loss_B[worst]:.4f}, not {expected_B[worst]:.4f}"
            raise SpinflowError(
                f"step-0 check failed: {told}; the reference is not this model's",
                remedy="remove the reference artifact and run again to score it anew",
            )

    def step_metrics(self) -> dict[str, float]:
        """Means a pair since the last call, over all devices."""
        raise NotImplementedError

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A step's line: the mean loss and rewards, and what was done a second, over all devices."""
        if "learning_rate" in logs:
            now = time.monotonic()
            seconds, self._clock = now - self._clock, now
            done = torch.tensor([self._tokens, self._flops], dtype=torch.float64, device=self.args.device)
            tokens, flops = self.over_devices(done).tolist()
            self._tokens = self._flops = 0.0
            logs |= self.step_metrics()
            logs |= {f"logratio/{side}": logs[f"rewards/{side}"] / self.objective.beta for side in ("real", "generated")}
            logs |= {"pairs/s": self.plan.pairs(self.state.global_step - 1) / seconds, "tokens/s": tokens / seconds}
            if self._cost:
                logs["mfu"] = flops / seconds / self._peak / self.args.world_size
            logs["beta"] = self.objective.beta
            logs["memory_gb"] = peak_memory_gb(self.args.device)
        super().log(logs, start_time)

    def over_devices(self, values: Tensor) -> Tensor:
        """Their sum over all devices."""
        return self.accelerator.reduce(values, "sum") if self.args.world_size > 1 else values


def collate_pairs(rows: list[dict[str, Any]], all_rows: Any = ()) -> dict[str, Any]:
    """One packed batch of B pairs, the real answers first, then the sampled ones, then the H newer ones, which are looked up in
    `all_rows`; reference log-probs and lengths alongside, fp32 [B] and [H]."""
    older = [number for number, row in enumerate(rows) if row.get("newer", -1) >= 0]
    newer = [all_rows[rows[number]["newer"]] for number in older]
    prompts = [row["prompt_ids"] for row in (*rows, *rows, *(rows[number] for number in older))]
    batch = pack(prompts, [row["real_ids"] for row in rows] + [row["generated_ids"] for row in (*rows, *newer)])
    tensors: dict[str, Any] = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    for side in ("real", "generated"):
        tensors[f"reference_{side}_B"] = torch.tensor([row[f"reference_{side}"] for row in rows], dtype=torch.float32)
        tensors[f"{side}_tokens_B"] = torch.tensor([len(row[f"{side}_ids"]) for row in rows], dtype=torch.float32)
    if newer:
        tensors["newer_pair_H"] = torch.tensor(older)
        tensors["newer_reference_H"] = torch.tensor([row["reference_generated"] for row in newer], dtype=torch.float32)
        tensors["newer_tokens_H"] = torch.tensor([len(row["generated_ids"]) for row in newer], dtype=torch.float32)
    return tensors | {"work": batch.work()}


def score_answers_in_forward(model: Any) -> None:
    """Makes `model(**batch)` return `answer_logps` [B] in place of logits; saving and loading stay as they are."""
    model.forward = lambda **tensors: answer_logps(model, Packed(**tensors))


def pairs_under(model: Any, inputs: dict[str, Any]) -> Pairs:
    """What `collate_pairs` made, with the log-probs of all answers under the model."""
    return as_pairs(model(**{name: inputs[name] for name in Packed.__dataclass_fields__}), inputs)


def as_pairs(answers: Tensor, inputs: dict[str, Any]) -> Pairs:
    """What `collate_pairs` made, with the log-probs [2B + H] of its answers."""
    pairs = len(inputs["reference_real_B"])
    real_B, generated_B, logp_H = torch.split(answers, [pairs, pairs, len(answers) - 2 * pairs])
    newer = None
    if len(logp_H):
        newer = Newer(inputs["newer_pair_H"], logp_H, inputs["newer_reference_H"], inputs["newer_tokens_H"])
    given = {name: inputs[name] for name in Pairs.__dataclass_fields__ if name in inputs}
    return Pairs(real_B, generated_B, newer=newer, **given)


class SpinTrainer(PlannedTrainer):
    """The packed backend."""

    def follow(self, plan: Plan, objective: Objective, schedule: Schedule, bf16: bool) -> None:
        """See `PlannedTrainer`."""
        super().follow(plan, objective, schedule, bf16)
        # summed where they are computed: a transfer a micro-batch would make the GPU wait
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Sum of the micro-batch's losses over the step's pairs."""
        # through the wrapped model's own call, so that DDP's gradient hooks and accelerate's autocast apply
        pairs = pairs_under(model, inputs)
        loss_B, metrics = self.objective.loss(pairs)
        self.check_step0(loss_B.detach(), pairs)
        counted = slice(0) if self.idle else slice(None)
        for name, value_B in {"loss": loss_B, **metrics, "logps/real": pairs.real_B, "logps/generated": pairs.generated_B}.items():
            self._sums[name] += value_B.detach()[counted].sum()
        if self.idle:
            return 0.0 * loss_B.sum()
        self.count(inputs["work"])
        return self.scaled(loss_B.sum())

    def step_metrics(self) -> dict[str, float]:
        """See `PlannedTrainer`."""
        sums = self.over_devices(torch.stack(list(self._sums.values()))).tolist()
        pairs = self.plan.pairs(self.state.global_step - 1)
        metrics = {name: value / pairs for name, value in zip(self._sums, sums, strict=True)}
        self._sums.clear()
        return metrics


class MetricsLog(TrainerCallback):  # type: ignore[misc]
    """Writes metrics.jsonl, a line a step, and progress lines for the parent."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drops the lines of steps that a killed run did after its last checkpoint: they will be done again."""
        if state.is_world_process_zero:
            cut_after(self.path, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """One line a logged step."""
        if not logs or "learning_rate" not in logs or not state.is_world_process_zero:
            return
        line = {"step": state.global_step, **{name: value for name, value in logs.items() if name != "epoch"}}
        with self.path.open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        note = f"loss {line['loss']:.3f} · {line['pairs/s']:.2f} pairs/s"
        print_event(Progress("training", state.global_step, state.max_steps, "steps", note))
