"""Where a campaign's model came from: the user's own tokenizer files, the authors' advice on sampling, and the license.

An import saves the tokenizer again, in the form of the transformers that is installed. Whoever takes the model away gets the files
that the user gave, where they are still the ones that were imported.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spin_core.campaign.ledger import Ledger, Turn
from spin_core.players.files import ADAPTER
from spin_core.players.stage import Import
from spin_core.recipe import ModelSettings, Recipe
from spin_core.runtime.errors import SpinflowError
from spin_core.sources.pins import on_hub
from spin_core.store import Store

_SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty")
_TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")


@dataclass(frozen=True)
class Origin:
    """What is known of the model that a campaign began with."""

    tokenizer: Path | None = None  # the folder with the user's own files
    sampling: dict[str, Any] = field(default_factory=dict)  # of its generation_config.json
    license: str | None = None
    pins: dict[str, str] = field(default_factory=dict)  # "model" and "data" with their commits, where they are on the hub


def origin_of(store: Store, recipe: Recipe, first: Turn) -> Origin:
    """What can be found of it without a network, and the license with one."""
    imported = first.ref("base" if "base" in first.made else "start")
    pins: dict[str, str] = {}
    folder: Path | None = None
    with suppress(SpinflowError, OSError):
        pinned = Ledger(store, recipe.name).pinned(recipe, begin=False)
        pins = {name: found.revision for name, found in (("model", pinned.model), ("data", pinned.data)) if on_hub(found.name)}  # type: ignore[misc]
        if Import(pinned.model, store.home).spec().digest == imported.digest:  # else it has changed since
            folder = _folder(pinned.model)
    if folder is None:
        return Origin(license=_license_on_hub(recipe, pins), pins=pins)
    own = folder
    if (folder / ADAPTER).is_file() and not any((folder / name).is_file() for name in _TOKENIZER):
        base = str(json.loads((folder / ADAPTER).read_text()).get("base_model_name_or_path"))
        own = next((place for place in (Path(base), folder / base, folder.parent / Path(base).name) if place.is_dir()), folder)
    advice: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        found = json.loads((own / "generation_config.json").read_text(encoding="utf-8"))
        advice = {name: found[name] for name in _SAMPLING if found.get(name) is not None}
    tokenizer = own if any((own / name).is_file() for name in _TOKENIZER) else None
    return Origin(tokenizer, advice, _license_in(folder) or _license_on_hub(recipe, pins), pins)


def _folder(settings: ModelSettings) -> Path | None:
    """The folder that a model was imported from, as far as it is on this machine."""
    path = Path(settings.name).expanduser()
    if path.is_dir():
        return path
    if not on_hub(settings.name):
        return None
    from huggingface_hub import try_to_load_from_cache

    for name in ("config.json", ADAPTER):
        found = try_to_load_from_cache(settings.name, name, revision=settings.revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def _license_in(folder: Path) -> str | None:
    """The license that a model card in the folder names."""
    from huggingface_hub import ModelCard

    with suppress(Exception):  # a README may be anything
        found = ModelCard.load(folder / "README.md").data.license
        return str(found) if found else None
    return None


def _license_on_hub(recipe: Recipe, pins: dict[str, str]) -> str | None:
    """The license that the hub knows; None where it is not asked or does not answer."""
    if "model" not in pins:
        return None
    from huggingface_hub import HfApi

    with suppress(Exception):  # the hub's errors, its HTTP library's own
        card = HfApi().model_info(recipe.model.name, revision=pins["model"], timeout=10.0).card_data
        return str(card.license) if card and card.license else None
    return None
