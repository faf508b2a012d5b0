"""`spinflow export`: one player of a campaign as a folder for transformers, vLLM and the hub, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from spin_core.campaign.ledger import Ledger, Turn, model_of
from spin_core.campaign.named import recipe_named
from spin_core.campaign.rules import best_of
from spin_core.encoding.ends import read_ends
from spin_core.encoding.template import template_text
from spin_core.export.card import model_card
from spin_core.export.origin import origin_of
from spin_core.export.picture import draw
from spin_core.recipe import Recipe
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput
from spin_core.store import Store

DTYPES = ("bf16", "fp16", "fp32")


@dataclass(frozen=True)
class Choice:
    """A player of a campaign that was played."""

    recipe: Recipe
    turns: list[Turn]
    number: int  # t of θ_t
    best: int


def choose(store: Store, what: str, iteration: str) -> Choice:
    """θ_`iteration` of a campaign, or its best player. Raises BadInput where it was not played."""
    recipe = recipe_named(store, what)
    turns = Ledger(store, recipe.name).whole_turns()
    if not turns:
        raise BadInput(f"campaign {recipe.name} has no finished iteration in {store.place}", remedy="run it first, or give its --home")
    best = best_of(turns, recipe.stop)
    if iteration == "best":
        return Choice(recipe, turns, best, best)
    if not iteration.isdecimal() or int(iteration) > len(turns):
        raise BadInput(f"campaign {recipe.name} has θ_0 … θ_{len(turns)}, not θ_{iteration}", remedy=f"give best, or 0 … {len(turns)}")
    return Choice(recipe, turns, int(iteration), best)


def export(store: Store, chosen: Choice, out: Path, dtype: str) -> dict[str, Any]:
    """Writes the folder `out`; returns what the child says of it: parameters, dtype, where the tokenizer is from.

    Raises BadInput where `out` holds something already, Corrupt where the model is damaged on disk.
    """
    require_free(out)
    turns, model = chosen.turns, model_of(chosen.turns, chosen.number)
    store.verify(model)
    ends = read_ends(turns[0].ref("encoded").path)
    origin = origin_of(store, chosen.recipe, turns[0])
    template = chosen.recipe.model.chat_template
    with _new_folder(out) as folder:
        job = {
            "model": str(model.path),
            "out": str(folder),
            "dtype": dtype,
            "own": str(origin.tokenizer) if origin.tokenizer else None,
            "template": template_text(template) if template else None,
            "kwargs": chosen.recipe.model.chat_template_kwargs,
            "ends": ends.ids,
            "advice": origin.sampling,
            "told": str(folder / ".told"),
        }
        process.run_job("spin_core.export.job", job, store.log_path(f"export-{model.digest}"), name="exporting")
        told: dict[str, Any] = json.loads((folder / ".told").read_text())
        (folder / ".told").unlink()
        draw(turns[: max(chosen.number, 1)], chosen.recipe.stop, folder / "results.png")
        card = model_card(chosen.recipe, turns, chosen.number, origin, told | {"dtype": dtype, "ends": ends.texts})
        (folder / "README.md").write_text(card, encoding="utf-8")
    return told


def require_free(out: Path) -> None:
    """BadInput unless a folder can be made at `out`."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        what = "holds files already" if out.is_dir() else "is a file"
        raise BadInput(f"{out} {what}, and nothing is overwritten", remedy="name a new folder, or remove it")


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes it once the block has ended well, and is removed otherwise."""
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(f".{out.name}-{uuid4().hex[:8]}")
    part.mkdir()
    try:
        yield part
        os.replace(part, out)  # an empty folder gives way
    finally:
        shutil.rmtree(part, ignore_errors=True)
