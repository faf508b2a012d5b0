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
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from spin_core.lm.logprobs import answer_logps
from spin_core.lm.meter import Work, cost_of, peak_flops, peak_memory_gb
from spin_core.lm.packing import Packed, pack
from spin_core.runtime.errors import SpinflowError
from spin_core.runtime.progress import Progress, print_event
from spin_core.training.objective import spin_loss
from spin_core.training.plan import Plan

_STEP0_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}


class PlannedTrainer(Trainer):  # type: ignore[misc]
    """A Trainer that follows a plan of micro-batches, and logs the same metrics whatever its loss comes from.

    The loss is averaged over all pairs of an optimiser step, however they are cut and spread over devices.
    """

    plan: Plan
    settings: dict[str, Any]
    bf16: bool
    loss_is_scaled_for_ga = True  # by `scaled`

    def follow(self, plan: Plan, settings: dict[str, Any], bf16: bool) -> None:
        """Sets the plan and the recipe's training settings, before `train`."""
        self.plan, self.settings, self.bf16 = plan, settings, bf16
        self._tokens = self._flops = 0.0
        self._checked = False
        self._clock = time.monotonic()
        self._cost = cost_of(self.model)
        self._peak = peak_flops(self.args.device, bf16) if self._cost else math.inf

    def get_train_dataloader(self) -> DataLoader[Any]:
        """This device's micro-batches. Nothing is left to shard or shuffle, so accelerate does not wrap it."""
        batches = self.plan.batches(self.args.process_index)
        return DataLoader(self.train_dataset, batch_sampler=batches, collate_fn=self.data_collator)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> int:
        return self.plan.pairs(self.state.global_step)

    def scaled(self, loss_sum: Tensor) -> Tensor:
        """The micro-batch's share of the step's mean loss. DDP and FSDP average over devices, hence the factor."""
        share: float = self.args.world_size / self.plan.pairs(self.state.global_step)
        return loss_sum * share

    def count(self, work: Work) -> None:
        """Adds a micro-batch to the account of tokens and FLOPs."""
        self._tokens += work.tokens
        self._flops += self._cost.flops(work) if self._cost else 0.0

    def check_step0(self, loss_B: Tensor) -> None:
        """At the first step the policy is the reference, so every loss is ln 2 (sigmoid), 1 (hinge) or 1/(4β²) (ipo).

        Packing, masking and tokenisation mistakes are silent otherwise.
        """
        if self._checked or self.state.global_step:
            return
        self._checked = True
        kind, beta = self.settings["loss"], self.settings["beta"]
        expected = {"sigmoid": math.log(2.0), "hinge": 1.0, "ipo": 0.25 / beta**2}[kind]
        # how much a rounding error of the log-probs weighs: in proportion to the loss's slope at z = 0
        steepness = 20.0 / beta if kind == "ipo" else max(1.0, beta / 0.1)
        worst = float((loss_B - expected).abs().max())
        if not worst <= _STEP0_TOLERANCE["bf16" if self.bf16 else "fp32"] * steepness:
            raise SpinflowError(
                f"step-0 check failed: a pair's loss is {expected + worst:.4f}, not {expected:.4f}; the reference is not this model's",
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
            logs |= {"pairs/s": self.plan.pairs(self.state.global_step - 1) / seconds, "tokens/s": tokens / seconds}
            if self._cost:
                logs["mfu"] = flops / seconds / self._peak / self.args.world_size
            logs["memory_gb"] = peak_memory_gb(self.args.device)
        super().log(logs, start_time)

    def over_devices(self, values: Tensor) -> Tensor:
        """Their sum over all devices."""
        return self.accelerator.reduce(values, "sum") if self.args.world_size > 1 else values


def collate_pairs(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """One packed batch of B pairs, the real answers first; their reference log-probs and lengths alongside, fp32 [B]."""
    prompts = [row["prompt_ids"] for row in rows]
    batch = pack(prompts + prompts, [row["real_ids"] for row in rows] + [row["generated_ids"] for row in rows])
    tensors: dict[str, Any] = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    for side in ("real", "generated"):
        tensors[f"reference_{side}_B"] = torch.tensor([row[f"reference_{side}"] for row in rows], dtype=torch.float32)
    tensors["real_tokens_B"] = torch.tensor([len(row["real_ids"]) for row in rows], dtype=torch.float32)
    return tensors | {"work": batch.work()}


def score_answers_in_forward(model: Any) -> None:
    """Makes `model(**batch)` return `answer_logps` [B] in place of logits; saving and loading stay as they are."""
    model.forward = lambda **tensors: answer_logps(model, Packed(**tensors))


class SpinTrainer(PlannedTrainer):
    """The packed backend."""

    def follow(self, plan: Plan, settings: dict[str, Any], bf16: bool) -> None:
        """See `PlannedTrainer`."""
        super().follow(plan, settings, bf16)
        # summed where they are computed: a transfer a micro-batch would make the GPU wait
        self._sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Sum of the micro-batch's losses over the step's pairs."""
        # through the wrapped model's own call, so that DDP's gradient hooks and accelerate's autocast apply
        real_B, generated_B = model(**{name: inputs[name] for name in Packed.__dataclass_fields__}).chunk(2)
        loss_B, reward_real_B, reward_generated_B = spin_loss(
            real_B,
            generated_B,
            inputs["reference_real_B"],
            inputs["reference_generated_B"],
            self.settings["beta"],
            self.settings["loss"],
            self.settings["label_smoothing"],
        )
        self.check_step0(loss_B.detach())
        if self.settings["sft_weight"]:
            loss_B = loss_B - self.settings["sft_weight"] * real_B / inputs["real_tokens_B"]
        margin_B = reward_real_B - reward_generated_B
        for name, value_B in {
            "loss": loss_B,
            "rewards/real": reward_real_B,
            "rewards/generated": reward_generated_B,
            "rewards/accuracies": (margin_B > 0).float(),
            "rewards/margins": margin_B,
            "logps/real": real_B,
            "logps/generated": generated_B,
        }.items():
            self._sums[name] += value_B.detach().sum()
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
            text = self.path.read_text() if self.path.exists() else ""
            lines = text[: text.rfind("\n") + 1].splitlines()  # a kill can leave half a line at the end
            kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
            self.path.write_text("".join(f"{line}\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """One line a logged step."""
        if not logs or "learning_rate" not in logs or not state.is_world_process_zero:
            return
        line = {"step": state.global_step, **{name: value for name, value in logs.items() if name != "epoch"}}
        with self.path.open("a") as handle:
            handle.write(json.dumps(line) + "\n")
        note = f"loss {line['loss']:.3f} · {line['pairs/s']:.2f} pairs/s"
        print_event(Progress("training", state.global_step, state.max_steps, "steps", note))
