"""A campaign that was played, made in seconds: θ_0 and its rows are real, θ_1 is θ_0 with other weights, figures are given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spin_core.campaign.ledger import Ledger
from spin_core.contracts.tables import write_rows
from spin_core.evaluation.stage import SAMPLES
from spin_core.recipe import Recipe
from spin_core.store import Ref, Spec, Store
from tests.stages import encode, import_model, reformat


def recipe_of(model: Path, **changes: Any) -> Recipe:
    """A recipe for a tiny model on questions that the code makes."""
    content = {
        "name": "tiny",
        "model": {"name": str(model)},
        "data": {"name": "demo", "subset": 24, "test_size": 8},
        "generation": {"engine": "transformers", "max_new_tokens": 16},
        "iterations": [{}],
    }
    return Recipe.model_validate(content | changes)


def figure(value: float, half: float = 0.1) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "prompts": 8}


def play(store: Store, recipe: Recipe, won: float = 0.2) -> Ref:
    """Leaves what one iteration leaves, as far as what comes after looks at it; returns θ_1."""
    ledger = Ledger(store, recipe.name)
    ledger.pinned(recipe)
    start, prompts = import_model(store, recipe.model), reformat(store, recipe.data)
    encoded = encode(store, recipe, start, prompts)

    def made(kind: str, what: str, write: Callable[[Path], Any] = lambda out: None, parents: tuple[Ref, ...] = (), **facts: Any) -> Ref:
        return store.build(Spec(kind, 1, {"of": recipe.name, "what": what}, parents), lambda out: write(out) or facts)

    model = made("model", "θ_1", lambda out: _other_weights(start.path, out), (start,), steps=3, pairs_per_s=2.0, beta=0.1)
    player = {"checks": figure(0.5), "nll": figure(0.4), "tokens": figure(9.0), "unfinished": figure(0.0)}
    gained = {"checks": figure(won), "nll": figure(-0.02)}
    test = {"before": player, "after": player, "gained": gained, "over_start": gained, "game": {"won": figure(1.0), "margin": figure(0.1)}}
    units = {"checks": "share", "nll": "nats", "tokens": "tokens", "unfinished": "share"}
    better = {"checks": "higher", "nll": "lower"}
    kinds = {name: {"unit": unit, "better": better.get(name)} for name, unit in units.items()}
    content = {"iteration": 0, "figures": kinds, "splits": {"test": test}, "diagnostics": {"figures": {}, "warnings": {}}}

    def write_verdict(out: Path) -> None:
        (out / "metrics.json").write_text(json.dumps(content))
        write_rows(out / "samples.parquet", [], SAMPLES)

    found: dict[str, Any] = {
        "prompts": prompts,
        "start": start,
        "encoded": encoded,
        "pairs": made("pairs", "", parents=(prompts, encoded), pairs=16, carried=0, identical=0),
        "reference": made("reference", "", pairs_per_s=1.0),
        "model": model,
        "scored": made("reference", "scored"),
        "evaluation": made("evaluation", "", write_verdict, (model,)),
    }
    found |= {f"{name}_shards": (made("shard", name, started=0.0, ended=1.0, tokens=5),) for name in ("train", "test", "new_test")}
    ledger.note(0, recipe, found, 0)
    return model


def _other_weights(folder: Path, out: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for part in model.parameters():
            part.add_(0.05 * torch.randn_like(part))
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    (out / "metrics.jsonl").write_text("")
