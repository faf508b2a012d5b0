"""`spinflow finetune`: the official training run on pairs from folders, files or the hub."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from spin_core.encoding.stage import tokenizer_files
from spin_core.official.config import Finetune
from spin_core.players.stage import import_model
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput
from spin_core.runtime.progress import tell
from spin_core.scoring.stage import score
from spin_core.sources.locate import locate
from spin_core.store import MANIFEST, Ref, Spec, Store
from spin_core.training.stage import finetune as train

STAGE_VERSION = 1


def finetune(store: Store, plan: Finetune) -> Path:
    """Trains and copies the model to the output folder. A killed run continues from its last checkpoint."""
    if plan.unused:
        tell("finetune", f"keys that change nothing here: {', '.join(plan.unused)}")
    model = import_model(store, plan.recipe.model)
    pairs = pairs_of(store, plan, model)
    reference = score(store, plan.recipe, model, pairs, splits=("train",))
    player = train(store, plan.recipe, 0, model, pairs, reference)
    _copy(player.path, plan.output_dir)
    facts = player.facts
    tell("finetune", f"{facts['steps']} steps, last loss {facts['loss']:.3f}; the model is in {plan.output_dir}")
    return plan.output_dir


def pairs_of(store: Store, plan: Finetune, model: Ref) -> Ref:
    """The mixed data sets as `pairs`, tokenised where they do not bring the tokens that were sampled."""
    data = plan.recipe.data
    sources = {name: locate(data.model_copy(update={"name": name, "split": plan.split}), store.home) for name in plan.mixer}
    limits = {"max_prompt_tokens": data.max_prompt_tokens, "max_new_tokens": plan.recipe.generation.max_new_tokens}
    mix = [{"share": share, **sources[name].identity} for name, share in plan.mixer.items()]
    params = {"official": mix, "split": plan.split, "max_rows": plan.max_rows, "tokenizer": tokenizer_files(model), **limits}
    spec = Spec("pairs", STAGE_VERSION, params)

    def write(staging: Path) -> dict[str, Any]:
        job: dict[str, Any] = {"model": str(model.path), "out": str(staging), "split": plan.split, "max_rows": plan.max_rows, **limits}
        job["sources"] = [
            {"name": name, "share": share, "files": [str(file) for file in sources[name].files], "commit": sources[name].commit}
            for name, share in plan.mixer.items()
        ]
        process.run_job("spin_core.official.pairs_job", job, store.log_path(f"pairs-{spec.digest}"), name="tokenising the pairs")
        facts: dict[str, Any] = json.loads((staging / "facts.json").read_text())
        (staging / "facts.json").unlink()
        return facts

    ref = store.build(spec, write)
    tell("finetune", ref.facts["message"])
    return ref


def _copy(model: Path, out: Path) -> None:
    """Every file is there whole or as it was before."""
    try:
        for file in sorted(model.rglob("*")):
            if file.is_file() and file.name != MANIFEST:
                target = out / file.relative_to(model)  # a LoRA run's adapter is in a folder of its own
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f".{file.name}.{os.getpid()}")
                shutil.copy(file, temporary)
                os.replace(temporary, target)
    except OSError as error:
        raise BadInput(
            f"output_dir {out}: {error.strerror or error}", remedy="mend it and run again; the model is trained already"
        ) from None
