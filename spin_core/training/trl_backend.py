"""TRL's `DPOTrainer` on the same pairs, plan, reference and metrics.

For architectures that the packed layout is not proven for (linear attention, mixtures of experts with their auxiliary
loss, alibi), and as the yardstick.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoTokenizer
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from spin_core.lm.meter import Work
from spin_core.recipe.losses import LOSSES
from spin_core.training.objectives import Pairs
from spin_core.training.trainer import PlannedTrainer

# TRL's name → ours
_METRICS = {
    "rewards/chosen": "rewards/real",
    "rewards/rejected": "rewards/generated",
    "rewards/accuracies": "rewards/accuracies",
    "rewards/margins": "rewards/margins",
    "logps/chosen": "logps/real",
    "logps/rejected": "logps/generated",
}


def trl_arguments(arguments: dict[str, Any], settings: dict[str, Any]) -> DPOConfig:
    """TRL's arguments with the recipe's loss. `bf16` would be TRL's default."""
    return DPOConfig(
        **arguments,
        bf16=False,
        beta=settings["beta"],
        loss_type=[LOSSES[settings["loss"]].trl],
        max_length=None,
        precompute_ref_log_probs=True,
    )


class TrlTrainer(PlannedTrainer, DPOTrainer):  # type: ignore[misc]
    """TRL's forward pass and loss; the plan, the normalisation over a step and the metrics' names are ours."""

    def __init__(self, folder: Path, **kwargs: Any) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        # what it is never only matters to a mask: padding is not attended to
        collator = DataCollatorForPreference(pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id or 0)
        super().__init__(processing_class=tokenizer, data_collator=lambda rows: _collate(rows, collator), **kwargs)
        if "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")  # TRL's copy for a reference of its own; resuming would load it in place of ours
            for weight in self.model.parameters():
                weight.data = weight.data.float() if weight.requires_grad else weight.data  # TRL rounds them beside a quantised base
        self._losses: list[Tensor] = []  # of the step's micro-batches, with the pairs of each
        self._counts: list[int] = []

    def _prepare_dataset(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # tokenised already

    def _precompute_ref_logps(self, dataset: Dataset, *args: Any, **kwargs: Any) -> Dataset:
        return dataset  # scored already

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a checkpoint of ours is for resuming only."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """TRL's mean over the micro-batch as its share of the step."""
        with _alone(self.accelerator):
            mean: Tensor = super().compute_loss(model, inputs)
        metrics = self._metrics["train"]
        extra = self.router_aux_loss_coef * metrics["aux_loss"][-1] if self.aux_loss_enabled else 0.0
        self.check_step0(mean.detach()[None] - extra, _pairs(inputs))
        pairs = 0 if self.idle else len(inputs["ref_chosen_logps"])
        self._counts.append(pairs)
        loss = mean * pairs
        self._losses.append(loss.detach())
        if self.idle:
            return loss
        size_B = inputs["attention_mask"].sum(1)
        self.count(Work(int(size_B.sum()), int((size_B * (size_B + 1) // 2).sum()), int(inputs["completion_mask"].sum())))
        return self.scaled(loss)

    def step_metrics(self) -> dict[str, float]:
        """See `PlannedTrainer`. TRL's own are means over this device's micro-batches."""
        found = self._metrics["train"]
        sums = [sum(n * value for n, value in zip(self._counts, found[name], strict=True)) for name in _METRICS]
        loss = torch.stack(self._losses).sum(dtype=torch.float64)
        whole_N = self.over_devices(torch.cat([loss[None], torch.tensor(sums, dtype=torch.float64, device=self.args.device)]))
        pairs = self.plan.pairs(self.state.global_step - 1)
        self._losses.clear()
        self._counts.clear()
        found.clear()
        return dict(zip(["loss", *_METRICS.values()], (whole_N / pairs).tolist(), strict=True))


@contextmanager
def _alone(accelerator: Any) -> Iterator[None]:
    """Lets TRL compute its metrics of this device's micro-batch: gathered, all would have to hold equally many pairs."""
    accelerator.gather = accelerator.gather_for_metrics = lambda values: values
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


def _pairs(inputs: dict[str, Any]) -> Pairs:
    """What step 0 is judged by: the policy is the reference there."""
    real_B, generated_B = inputs["ref_chosen_logps"].float(), inputs["ref_rejected_logps"].float()
    real_tokens_B, generated_tokens_B = inputs["completion_mask"].sum(1).float().chunk(2)
    return Pairs(real_B, generated_B, real_B, generated_B, real_tokens_B, generated_tokens_B)


def _collate(rows: list[dict[str, Any]], collator: DataCollatorForPreference) -> dict[str, Any]:
    names = {"prompt_ids": "prompt_ids", "real_ids": "chosen_ids", "generated_ids": "rejected_ids"}
    names |= {"reference_real": "ref_chosen_logps", "reference_generated": "ref_rejected_logps"}
    return dict(collator([{theirs: row[ours] for ours, theirs in names.items()} for row in rows]))
