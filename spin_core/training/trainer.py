"""The SPIN step on `transformers.Trainer`: ids in, reference from the artifact, one model in memory."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback

from spin_core.errors import SpinflowError
from spin_core.progress import Progress, print_event
from spin_core.training.logprobs import Layout, answer_logps, batch_of, token_count
from spin_core.training.objective import spin_loss

_STEP0_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}


def collate_pairs(rows: list[dict[str, Any]], layout: Layout) -> dict[str, torch.Tensor]:
    """One batch of B pairs as 2B sequences, the real answers first; reference log-probs alongside, fp32 [B]."""
    prompts = [row["prompt_ids"] for row in rows]
    batch = layout(prompts + prompts, [row["real_ids"] for row in rows] + [row["generated_ids"] for row in rows])
    tensors = {name: getattr(batch, name) for name in batch.__dataclass_fields__}
    for side in ("real", "generated"):
        tensors[f"reference_{side}_B"] = torch.tensor([row[f"reference_{side}"] for row in rows], dtype=torch.float32)
    return tensors


def score_answers_in_forward(model: Any) -> None:
    """Makes `model(**batch)` return `answer_logps` [B] in place of logits; saving and loading stay as they are."""
    model.forward = lambda **tensors: answer_logps(model, batch_of(tensors))


class SpinTrainer(Trainer):  # type: ignore[misc]
    """Trainer with the SPIN loss, averaged over all pairs of an optimiser step however it is cut into micro-batches."""

    def __init__(self, *args: Any, beta: float, loss_kind: Any, label_smoothing: float, precision: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._beta, self._loss_kind, self._label_smoothing, self._precision = beta, loss_kind, label_smoothing, precision
        self._sums: dict[str, float] = defaultdict(float)
        self._tokens = 0
        self._checked = False
        self._clock = time.monotonic()
        # the loss is normalised by us; without this the Trainer would divide by the accumulation steps once more
        self.model_accepts_loss_kwargs = True

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Pairs of this optimiser step on all ranks: the last step of an epoch may hold fewer."""
        count = torch.tensor(sum(len(batch["reference_real_B"]) for batch in batch_samples), device=device)
        return self.accelerator.reduce(count, "sum") if self.args.world_size > 1 else count

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """Sum of the micro-batch's losses over the step's pairs. DDP averages over ranks, hence the factor."""
        # through the wrapped model's own call, so that DDP's gradient hooks and accelerate's autocast apply
        batch = batch_of(inputs)
        real_B, generated_B = model(**{name: inputs[name] for name in batch.__dataclass_fields__}).chunk(2)
        loss_B, reward_real_B, reward_generated_B = spin_loss(
            real_B,
            generated_B,
            inputs["reference_real_B"],
            inputs["reference_generated_B"],
            self._beta,
            self._loss_kind,
            self._label_smoothing,
        )
        if not self._checked:
            self._check_step0(loss_B.detach())
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
            self._sums[name] += float(value_B.detach().sum())
        self._sums["pairs"] += len(loss_B)
        self._tokens += token_count(batch)
        pairs = num_items_in_batch if num_items_in_batch is not None else len(loss_B)
        return loss_B.sum() * self.args.world_size / pairs

    def _check_step0(self, loss_B: torch.Tensor) -> None:
        """At the first step the policy is the reference, so every loss is ln 2 (sigmoid), 1 (hinge) or 1/(4β²) (ipo).

        Packing, masking and tokenisation mistakes are silent otherwise.
        """
        self._checked = True
        if self.state.global_step:
            return
        expected = {"sigmoid": math.log(2.0), "hinge": 1.0, "ipo": 0.25 / self._beta**2}[self._loss_kind]
        # how much a rounding error of the log-probs weighs: in proportion to the loss's slope at z = 0
        steepness = 20.0 / self._beta if self._loss_kind == "ipo" else max(1.0, self._beta / 0.1)
        worst = float((loss_B - expected).abs().max())
        if not worst <= _STEP0_TOLERANCE[self._precision] * steepness:
            raise SpinflowError(
                f"step-0 check failed: a pair's loss is {expected + worst:.4f}, not {expected:.4f}; the reference is not this model's",
                remedy="remove the reference artifact and run again to score it anew",
            )

    def take_metrics(self) -> dict[str, float]:
        """Means a pair since the last call, pairs/s and the tokens/s that the decoder computed, padding left out."""
        pairs = self._sums.pop("pairs", 0.0) or 1.0
        metrics = {name: value / pairs for name, value in self._sums.items()}
        self._sums.clear()
        now = time.monotonic()
        metrics["pairs/s"] = pairs * self.args.world_size / (now - self._clock)
        metrics["tokens/s"] = self._tokens * self.args.world_size / (now - self._clock)
        self._clock, self._tokens = now, 0
        return metrics


class MetricsLog(TrainerCallback):  # type: ignore[misc]
    """Writes metrics.jsonl, a line a step, and progress lines for the parent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trainer: SpinTrainer | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Drops the lines of steps that a killed run did after its last checkpoint: they will be done again."""
        if state.is_world_process_zero:
            text = self.path.read_text() if self.path.exists() else ""
            lines = text[: text.rfind("\n") + 1].splitlines()  # a kill can leave half a line at the end
            kept = [line for line in lines if json.loads(line)["step"] <= state.global_step]
            self.path.write_text("".join(f"{line}\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """One line a logged step."""
        if not logs or "learning_rate" not in logs or self.trainer is None:
            return
        metrics = self.trainer.take_metrics()
        line = {
            "step": state.global_step,
            **metrics,
            "grad_norm": float(logs.get("grad_norm", 0.0)),
            "learning_rate": logs["learning_rate"],
        }
        if state.is_world_process_zero:
            with self.path.open("a") as handle:
                handle.write(json.dumps(line) + "\n")
            note = f"loss {metrics['loss']:.3f} · {metrics['pairs/s']:.2f} pairs/s"
            print_event(Progress("training", state.global_step, state.max_steps, "steps", note))
