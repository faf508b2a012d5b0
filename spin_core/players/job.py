"""The child that converts a model: imports torch, so the flow process never does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin_core.players import hub
from spin_core.players.adapter import base_of, merge
from spin_core.players.files import require_whole
from spin_core.players.loading import ids_of_generation, load_gguf, load_model, load_tokenizer
from spin_core.players.vocabulary import embedding_rows, require_vocabulary
from spin_core.runtime.errors import BadInput
from spin_core.runtime.process import job_main


def convert(job: dict[str, Any]) -> None:
    """Loads model and tokenizer and saves both as safetensors: whole, unrounded, without an adapter, with no advice on sampling."""
    source, out = Path(job["source"]), job["out"]
    if source.suffix == ".gguf" and source.is_file():
        folder, model = None, load_gguf(source, source.name)
        tokenizer = load_tokenizer(source.parent, source.name, gguf_file=source.name)
        where = source.name
    else:
        where = job["source"]
        folder = _folder(where, job["revision"])
        model, tokenizer = _whole(folder, where, job.get("base"))
    if job.get("chat_template"):
        tokenizer.chat_template = job["chat_template"]
    require_vocabulary(tokenizer, embedding_rows(model), where)
    model.generation_config = ids_of_generation(folder, model)
    if model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def _folder(name: str, revision: str | None) -> Path:
    """The folder of a model, downloaded where it is on the hub, checked."""
    folder = Path(name) if Path(name).is_dir() else hub.download(name, revision)
    require_whole(folder, name)
    return folder


def _whole(folder: Path, where: str, base: dict[str, Any] | None) -> tuple[Any, Any]:
    """Model and tokenizer of a folder; of an adapter's, its base in fp32 with the adapter added."""
    import torch

    if base_of(folder, where) is None:
        return load_model(folder, where), load_tokenizer(folder, where)
    assert base is not None  # the stage found it when it took the identity
    below = f"{base['name']} (base of the adapter {where})"
    under = Path(base["name"]) if Path(base["name"]).is_dir() else hub.download(base["name"], base["revision"])
    require_whole(under, below)
    if base_of(under, below) is not None:
        raise BadInput(
            f"the adapter {where} has another adapter for a base, {base['name']}", remedy="merge the first, and name the whole model"
        )
    model = merge(load_model(under, below, torch.float32), folder, where)
    own = any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json"))
    return model, load_tokenizer(folder if own else under, where)


if __name__ == "__main__":
    job_main(convert)
