"""Prompts and human answers to token ids, once a campaign: what the engine, the scorer and the trainer all use.

Written as an artifact, so that no later stage tokenises anything. It depends on the tokenizer's files, not on the weights:
every θ_t of a campaign shares it. Run as a child, because transformers imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin_core.contracts.tables import count_rows
from spin_core.recipe import Recipe
from spin_core.runtime import process
from spin_core.runtime.progress import tell
from spin_core.store import Ref, Spec, Store

STAGE_VERSION = 1


def encode(store: Store, recipe: Recipe, model: Ref, prompts: Ref) -> Ref:
    """`train.parquet` and `test.parquet` with row_id, prompt_ids [P], real_ids [C], in the order of the prompts.

    Over-long prompts are left out and listed in left_out.parquet.
    """
    params = {
        "tokenizer": tokenizer_files(model),
        "max_prompt_tokens": recipe.data.max_prompt_tokens,
        "max_new_tokens": recipe.generation.max_new_tokens,
        "on_bad_row": recipe.data.on_bad_row,
    }
    spec = Spec("encoded", STAGE_VERSION, params, (prompts,))

    def write(staging: Path) -> dict[str, Any]:
        job = {"model": str(model.path), "prompts": str(prompts.path), "out": str(staging), **params}
        process.run_job("spin_core.encoding.job", job, store.log_path(f"encode-{spec.digest}"), name="tokenising the prompts")
        return {split: count_rows(staging / f"{split}.parquet") for split in ("train", "test", "left_out")}

    known = store.lookup(spec)
    ref = store.build(spec, write)
    if not known and ref.facts["left_out"]:
        limit = recipe.data.max_prompt_tokens
        tell("data", f"{ref.facts['left_out']:,} prompts over {limit} tokens were left out · {ref.path / 'left_out.parquet'}")
    return ref


def tokenizer_files(model: Ref) -> dict[str, str]:
    """The sha256 of the files that decide how a model's text becomes ids."""
    files = model.manifest["files"]
    return {name: entry["sha256"] for name, entry in files.items() if "token" in name or "template" in name or name.endswith(".model")}
