"""The stage `encoded`: prompts and human answers as token ids, once a campaign, for the engine, the scorer and the trainer.

It depends on θ_0's tokenizer, which every θ_t shares.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spin_core.players.limits import require_positions
from spin_core.recipe import Recipe
from spin_core.runtime.launcher import Launcher
from spin_core.store import Ref, Spec

STAGE_VERSION = 2


@dataclass(frozen=True)
class Encode:
    """`train.parquet` and `test.parquet` with row_id, prompt_ids [P], real_ids [C], in the order of the prompts.

    Over-long prompts are left out and listed in left_out.parquet.
    """

    max_prompt_tokens: int
    max_new_tokens: int
    on_bad_row: str
    model: Ref  # θ_0
    prompts: Ref
    label: str = "encode"

    @classmethod
    def of(cls, recipe: Recipe, model: Ref, prompts: Ref) -> Encode:
        """With the recipe's limits."""
        return cls(recipe.data.max_prompt_tokens, recipe.generation.max_new_tokens, recipe.data.on_bad_row, model, prompts)

    def spec(self) -> Spec:
        """The limits, the tokenizer's model and the prompts."""
        data = {"max_prompt_tokens": self.max_prompt_tokens, "on_bad_row": self.on_bad_row}
        params = {"data": data, "generation": {"max_new_tokens": self.max_new_tokens}}
        return Spec("encoded", STAGE_VERSION, params, (self.model, self.prompts))

    def run(self, out: Path, on: Launcher) -> None:
        """Renders and tokenises in a child: transformers imports torch. Limits beyond the model's positions are refused first."""
        require_positions(self.model.path, self.max_prompt_tokens, self.max_new_tokens)
        job = {
            "model": str(self.model.path),
            "prompts": str(self.prompts.path),
            "max_prompt_tokens": self.max_prompt_tokens,
            "max_new_tokens": self.max_new_tokens,
            "on_bad_row": self.on_bad_row,
            "out": str(out),
        }
        on.job("spin_core.encoding.job", job, f"encode-{self.spec().digest}", "tokenising the prompts")
