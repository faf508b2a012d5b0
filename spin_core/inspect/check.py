"""`spinflow check`: what would fail an hour into a run, found in half a minute."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from spin_core.contracts.tables import iter_tables
from spin_core.players.stage import Import
from spin_core.recipe import Recipe
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput
from spin_core.runtime.launcher import Launcher
from spin_core.sources.stage import Prompts
from spin_core.store import Store

_FP32_BYTES = 4
# weights, gradient and RMSProp's second moment, all fp32; AdamW keeps one moment more
_TRAINING_COPIES = {"rmsprop": 3, "adamw": 4}


def check(store: Store, recipe: Recipe, console: Console) -> None:
    """Imports the model, reads the data, renders a row, estimates disk and memory. Raises BadInput at the first problem."""
    on = Launcher(store, recipe.name)
    model = on.build(Import(recipe.model, store.home))
    prompts = on.build(Prompts(recipe.data, store.home))
    report = store.home / f".preflight-{recipe.name}.json"
    job = {"model": str(model.path), "prompts": str(prompts.path), "limit": recipe.generation.max_new_tokens, "out": str(report)}
    lora = recipe.training.lora
    job |= {"quantize": lora.quantize if lora else None}
    try:
        process.run_job("spin_core.inspect.check", job, store.log_path(f"preflight-{recipe.name}"), name="preflight")
        found = json.loads(report.read_text())
    finally:
        report.unlink(missing_ok=True)
    weights = found["parameters"] * _FP32_BYTES
    copies = 1 if lora else _TRAINING_COPIES[recipe.training.optimizer]  # an adapter weighs next to nothing
    # every iteration keeps a model, and training keeps one checkpoint with the optimiser's moments
    disk = weights * (len(recipe.iterations) + 1 + copies)
    free = shutil.disk_usage(store.home).free
    facts = prompts.facts
    table = Table(title=f"spinflow check · {recipe.name}", show_header=False)
    for name, value in (
        ("model", f"{recipe.model.name} · {found['parameters'] / 1e6:,.0f}M parameters · {found['architecture']}"),
        ("EOS", f"{found['eos']} · in the template: yes"),
        ("rows", facts["message"] + (f"\n{prompts.path / 'rejected.parquet'}" if facts["rejected"] else "")),
        ("prompt", f"{len(found['prompt_ids'])} tokens, an exact prefix of prompt + answer: yes"),
        ("disk", f"about {disk / 2**30:.1f} GiB, {free / 2**30:.0f} GiB free"),
        ("training memory", f"about {weights * copies / 2**30:.1f} GiB and activations"),
    ):
        table.add_row(name, value)
    console.print(table)
    console.print("[bold]a row as the model sees it[/bold]")
    console.print(found["prompt"] + found["answer"], markup=False, highlight=False)
    if disk > free:
        raise BadInput(
            f"{store.home} has {free / 2**30:.1f} GiB free, about {disk / 2**30:.1f} are needed", remedy="free some space or set --home"
        )


def _work(job: dict[str, Any]) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    from spin_core.encoding.chat import Renderer
    from spin_core.lm.adapter import quantized

    quantized(job["quantize"], bf16=False)  # raises where it cannot be done
    renderer = Renderer(Path(job["model"]))
    row = next(iter_tables(Path(job["prompts"]) / "train.parquet", rows=1)).to_pylist()[0]
    prompt_ids = renderer.prompt_ids(row["real"][:-1])
    real_ids = renderer.real_ids(row["real"], job["limit"])
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"])
    found = {
        "parameters": model.num_parameters(),
        "architecture": AutoConfig.from_pretrained(job["model"]).model_type,
        "eos": renderer.tokenizer.eos_token,
        "prompt_ids": prompt_ids,
        "prompt": renderer.tokenizer.decode(prompt_ids),
        "answer": renderer.tokenizer.decode(real_ids),
    }
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    process.job_main(_work)
