"""A warm start before self-play: the recipe's group `sft`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from spin_core.recipe.group import Group
from spin_core.recipe.identity import Speed


class SftSettings(Group):
    """SFT of `model` on the train rows' human answers; θ_0 is the model of the epoch under which the validation rows' are most likely.

    Only where it is set, `{}` for its defaults. For base models, and for those that do not know the data's format yet.
    """

    learning_rate: float = Field(2e-5, gt=0.0, lt=1.0)
    """Peak learning rate."""
    epochs: int = Field(3, ge=1)
    """Passes over the rows at most, which the schedule is laid over."""
    patience: int = Field(1, ge=1)
    """Stop after so many epochs without a gain on the validation rows."""
    rows_per_step: int = Field(64, ge=1)
    """Rows in an optimiser step over all devices."""
    tokens_per_micro_batch: Annotated[int, Speed] = Field(4096, ge=1)
    """Tokens in one forward and backward pass on a device, padding included; a longer row goes alone."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning-rate schedule after the warm-up."""
    warmup_ratio: float = Field(0.1, ge=0.0, lt=1.0)
    """Share of the steps with a rising learning rate."""
    seed: int = Field(0, ge=0)
    """Order of the rows."""
