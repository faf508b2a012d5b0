"""The stage `encoded`: prompts and human answers as token ids, once a campaign, for the engine, the scorer and the trainer.

It depends on θ_0's tokenizer, which every θ_t shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.players.limits import require_positions
from spin_core.recipe import Recipe
from spin_core.runtime.launcher import Launcher
from spin_core.store import Ref, Spec

STAGE_VERSION = 3


@dataclass(frozen=True)
class Encode:
    """A parquet file for each of the prompts', with row_id, prompt_ids [P], real_ids [C], in their order.

    Rows that cannot be used (too long, refused by the template, …) are listed in left_out.parquet; ends.json says what ends a turn.
    """

    max_prompt_tokens: int
    max_new_tokens: int
    on_bad_row: str
    chat_template_kwargs: Mapping[str, Any]
    model: Ref  # θ_0
    prompts: Ref
    label: str = "encode"

    @classmethod
    def of(cls, recipe: Recipe, model: Ref, prompts: Ref) -> Encode:
        """With the recipe's limits and what it calls the template with."""
        data, kwargs = recipe.data, recipe.model.chat_template_kwargs
        return cls(data.max_prompt_tokens, recipe.generation.max_new_tokens, data.on_bad_row, kwargs, model, prompts)

    def spec(self) -> Spec:
        """The limits, what the template is called with, the tokenizer's model and the prompts."""
        data = {"max_prompt_tokens": self.max_prompt_tokens, "on_bad_row": self.on_bad_row}
        params: dict[str, Any] = {"data": data, "generation": {"max_new_tokens": self.max_new_tokens}}
        if self.chat_template_kwargs:
            params["model"] = {"chat_template_kwargs": self.chat_template_kwargs}
        return Spec("encoded", STAGE_VERSION, params, (self.model, self.prompts))

    def run(self, out: Path, on: Launcher) -> None:
        """Renders and tokenises in a child: transformers imports torch. Limits beyond the model's positions are refused first."""
        require_positions(self.model.path, self.max_prompt_tokens, self.max_new_tokens)
        job = {
            "model": str(self.model.folder),
            "prompts": str(self.prompts.folder),
            "max_prompt_tokens": self.max_prompt_tokens,
            "max_new_tokens": self.max_new_tokens,
            "on_bad_row": self.on_bad_row,
            "chat_template_kwargs": self.chat_template_kwargs,
            "out": str(out),
        }
        on.job("spin_core.encoding.job", job, f"encode-{self.spec().digest}", "tokenising the prompts")
