"""Prompts and human answers to token ids, once a campaign: what the engine, the scorer and the trainer all use.

Written as an artifact, so that no later stage tokenises anything. It depends on the tokenizer's files, not on the weights:
every θ_t of a campaign shares it. Run as a child, because transformers imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from spin_core import process
from spin_core.errors import BadInput
from spin_core.recipe import Recipe
from spin_core.rows import IDS, REJECTED, read_rows, write_rows
from spin_core.store import Ref, Spec, Store

STAGE_VERSION = 1
ENCODED = pa.schema([("row_id", pa.string()), ("prompt_ids", IDS), ("real_ids", IDS)])


def encode(store: Store, recipe: Recipe, model: Ref, prompts: Ref) -> Ref:
    """`train.parquet` and `test.parquet` with row_id, prompt_ids [P], real_ids [C]; over-long prompts are left out and listed."""
    files = model.manifest["files"]
    tokenizer = {name: entry["sha256"] for name, entry in files.items() if "token" in name or "template" in name or name.endswith(".model")}
    params = {
        "tokenizer": tokenizer,
        "max_prompt_tokens": recipe.data.max_prompt_tokens,
        "max_new_tokens": recipe.generation.max_new_tokens,
        "on_bad_row": recipe.data.on_bad_row,
    }
    spec = Spec("encoded", STAGE_VERSION, params, (prompts,))

    def write(staging: Path) -> dict[str, Any]:
        job = {"model": str(model.path), "prompts": str(prompts.path), "out": str(staging), **params}
        process.run_job("spin_core.encode", job, store.log_path(f"encode-{spec.digest}"), name="tokenising the prompts")
        return {"left_out": len(read_rows(staging / "left_out.parquet"))}

    return store.build(spec, write)


def _work(job: dict[str, Any]) -> None:
    from spin_core.chat import Renderer

    renderer = Renderer(Path(job["model"]))
    left_out = []
    for split in ("train", "test"):
        rows = []
        for number, row in enumerate(read_rows(Path(job["prompts"]) / f"{split}.parquet")):
            prompt_ids = renderer.prompt_ids(row["real"][:-1])
            if len(prompt_ids) > job["max_prompt_tokens"]:
                limit = job["max_prompt_tokens"]
                reason = f"{split} row {row['row_id']}: the prompt has {len(prompt_ids)} tokens, over data.max_prompt_tokens={limit}"
                left_out.append({"row_number": number, "reason": reason})
                continue
            real_ids = renderer.real_ids(row["real"], job["max_new_tokens"])
            rows.append({"row_id": row["row_id"], "prompt_ids": prompt_ids, "real_ids": real_ids})
        if not rows:
            raise BadInput(
                f"no {split} row has a prompt within data.max_prompt_tokens={job['max_prompt_tokens']}", remedy="raise the limit"
            )
        write_rows(Path(job["out"]) / f"{split}.parquet", rows, ENCODED)
    if left_out and job["on_bad_row"] == "error":
        raise BadInput(
            f"{len(left_out)} prompts are too long, first: {left_out[0]['reason']}", remedy="raise it or set data.on_bad_row=skip"
        )
    write_rows(Path(job["out"]) / "left_out.parquet", left_out, REJECTED)


if __name__ == "__main__":
    process.job_main(_work)
