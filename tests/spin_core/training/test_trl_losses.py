"""What the TRL backend says it has is, loss by loss, what TRL computes from equal inputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from spin_core.lm.logprobs import answer_logps, collate
from spin_core.recipe.losses import LOSSES, trl_lacks
from spin_core.training.objectives import Pairs, objective

PROMPTS = [[5, 6, 7], [8, 9]]
REAL, GENERATED = [[10, 11, 12, 2], [13, 2]], [[14, 15], [16, 17, 18]]
REFERENCE_REAL, REFERENCE_GENERATED = [-20.0, -12.5], [-13.0, -15.0]  # some nats off, so that no log-ratio is 0


@pytest.fixture(scope="module")
def trainer(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from spin_core.training.trl_backend import TrlTrainer, trl_arguments

    given = {"output_dir": str(tmp_path_factory.mktemp("work")), "use_cpu": True, "remove_unused_columns": False, "report_to": "none"}
    columns = {"prompt_ids": PROMPTS, "real_ids": REAL, "generated_ids": GENERATED}
    columns |= {"reference_real": REFERENCE_REAL, "reference_generated": REFERENCE_GENERATED}  # type: ignore[dict-item]
    return TrlTrainer(
        tiny_model,
        model=AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32),
        args=trl_arguments(given, {"beta": 0.3, "loss": "sigmoid"}),
        train_dataset=Dataset.from_dict(columns),
    )


def theirs(trainer: Any, loss: str) -> float:
    trainer.loss_types = [loss]
    batch = trainer.data_collator([trainer.train_dataset[index] for index in range(2)])
    with torch.no_grad():
        return float(trainer._compute_loss(trainer.model, batch, False))


def ours(trainer: Any, loss: str) -> float:
    settings = {"loss": loss, "beta": 0.3, "label_smoothing": 0.0, "sft_weight": 0.0, "history_weight": 0.0, "dpop_lambda": 5.0}
    with torch.no_grad():
        real_B, generated_B = answer_logps(trainer.model, collate(PROMPTS * 2, REAL + GENERATED)).chunk(2)
    reference = (torch.tensor(REFERENCE_REAL), torch.tensor(REFERENCE_GENERATED))
    tokens = (torch.tensor([4.0, 2.0]), torch.tensor([2.0, 3.0]))
    return float(objective(settings).loss(Pairs(real_B, generated_B, *reference, *tokens))[0].mean())


@pytest.mark.parametrize("loss", [name for name, loss in LOSSES.items() if loss.trl])
def test_equal_losses_for_equal_inputs(trainer: Any, loss: str) -> None:
    """`training.backend` is not in the digest, so a loss that differs would give one name to two models."""
    assert theirs(trainer, str(LOSSES[loss].trl)) == pytest.approx(ours(trainer, loss), rel=1e-5)


def test_what_it_lacks_is_not_what_we_mean(trainer: Any) -> None:
    """TRL's ipo is of means a token. Should it ever agree with ours, the backend can have it."""
    assert theirs(trainer, "ipo") != pytest.approx(ours(trainer, "ipo"), rel=1e-2)
    lacking = {loss: trl_lacks({"loss": loss, "label_smoothing": 0.0, "sft_weight": 0.0, "history_weight": 0.0}) for loss in LOSSES}
    assert {loss: why for loss, why in lacking.items() if why} == {"ipo": "loss: ipo", "dpop": "loss: dpop"}
    settings = {"loss": "nce", "label_smoothing": 0.1, "sft_weight": 1.0, "history_weight": 0.5}
    assert trl_lacks(settings) == "label_smoothing and no sft_weight and no history_weight"
