"""PEFT adapters in a model's place: found without torch, merged into their base in fp32 in the import's child.

What self-play needs is one whole model a turn: the engine samples from it, scoring freezes it, training starts at it. So an
adapter is added to its base once, at import, and the base's own content is part of the identity.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.players.files import ADAPTER, INDEX, WEIGHTS, header, read_json
from spin_core.runtime.errors import BadInput

_WEIGHTS = "adapter_model.safetensors"
_EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings", "lm_head", "embed_out")


@dataclass(frozen=True)
class Base:
    """The model that an adapter was trained beside: a folder, or a hub id at a revision."""

    name: str
    revision: str | None = None


def base_of(folder: Path, where: str) -> Base | None:
    """The base of the adapter in `folder`, None where it is a whole model; BadInput where it has an adapter and cannot be merged."""
    if not (folder / ADAPTER).is_file():
        return None
    found = read_json(folder / ADAPTER)
    if (folder / WEIGHTS).is_file() or (folder / INDEX).is_file():
        raise BadInput(
            f"{where} holds an adapter ({ADAPTER}) and a whole model, which may have it in it or not",
            remedy="move the adapter's files away to train the model as it is, or to a folder of their own to have them merged",
        )
    name = found.get("base_model_name_or_path")
    if not name:
        raise BadInput(f"the adapter {where} names no base model", remedy=f"set base_model_name_or_path in its {ADAPTER}")
    return Base(*_locate(str(name), found.get("revision"), folder, where))


def _locate(name: str, revision: Any, folder: Path, where: str) -> tuple[str, str | None]:
    """The base as a folder, or as what can only be a hub id."""
    given = Path(name).expanduser()
    for place in (given, folder / given, folder.parent / given.name):
        if (place / "config.json").is_file():
            return str(place.resolve()), None
    parts = name.split("/")
    if given.is_absolute() or name.startswith((".", "~")) or len(parts) > 2 or not all(parts):
        raise BadInput(
            f"the adapter {where} was trained beside {name}, which is no model's folder here",
            remedy=f"set base_model_name_or_path in its {ADAPTER} to the base's folder or hub id",
        )
    return name, None if revision is None else str(revision)


def merge(model: Any, folder: Path, where: str) -> Any:
    """`model` (the base, fp32) with the adapter in `folder` added to its weights; BadInput where it does not fit, or not all of it."""
    from peft import PeftConfig, PeftModel

    _resize(model, folder)
    try:
        config = PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            raise ValueError(f"{config.peft_type} learns a prompt, which is no part of the weights")
        adapted = PeftModel.from_pretrained(model, str(folder), config=config)
        found = adapted.load_adapter(str(folder), "default")  # once more, for its report: from_pretrained only warns
        saved = header(folder / _WEIGHTS)
        # peft saves a resized embedding twice; the copy under the wrapper's own name finds no place
        unexpected = [
            name for name in found.unexpected_keys if not ("modules_to_save." in name and name.replace("modules_to_save.", "") in saved)
        ]
        if found.missing_keys or unexpected:
            raise ValueError(_misfit(model, found.missing_keys, unexpected))
        return adapted.merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, NotImplementedError) as error:
        raise BadInput(
            f"the adapter {where} cannot be merged into its base: {' '.join(str(error).split())[:300]}",
            remedy="check base_model_name_or_path, or merge it where it was trained (merge_and_unload) and name the whole model",
        ) from None


def _misfit(model: Any, missing: list[str], unexpected: list[str]) -> str:
    kinds = [(unexpected, "of its weights have no place there"), (missing, "weights that it should have are missing")]
    parts = [f"{len(names)} {what}, first {sorted(names)[0]}" for names, what in kinds if names]
    return f"it does not fit a {model.config.model_type} of this size: {'; '.join(parts)}"


def _resize(model: Any, folder: Path) -> None:
    """Gives the base as many embedding rows as the adapter saved: tokens that were added for the fine-tuning."""
    shapes = {name: entry["shape"] for name, entry in header(folder / _WEIGHTS).items()}
    saved = [
        shape[0]
        for name, shape in shapes.items()
        if len(shape) == 2 and "lora_" not in name and any(f".{part}." in name for part in _EMBEDDINGS) and name.endswith("weight")
    ]
    if saved and max(saved) != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(max(saved), mean_resizing=False)
