"""Importing θ_0: a hub model, a local folder, or a GGUF file from a Python package, as a `model` artifact."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from spin_core.recipe import ModelSettings
from spin_core.runtime import process
from spin_core.runtime.errors import BadInput
from spin_core.sources.fetch import fetch_pypi
from spin_core.store import Ref, Spec, Store, sha256_file

STAGE_VERSION = 1


def import_model(store: Store, settings: ModelSettings) -> Ref:
    """Saves the recipe's model once as fp32-loadable safetensors with its tokenizer; later calls find the artifact."""
    spec, source = _identify(store, settings)

    def write(staging: Path) -> None:
        job = {"source": str(source), "revision": settings.revision, "trust": settings.trust_remote_code, "out": str(staging)}
        process.run_job("spin_core.players.job", job, store.log_path(f"model-{spec.digest}"), name="importing the model")

    return store.build(spec, write)


def _identify(store: Store, settings: ModelSettings) -> tuple[Spec, str | Path]:
    """The model's identity is its content where that is at hand, and the hub's commit otherwise."""
    params: dict[str, Any] = {"name": settings.name}
    source: str | Path = settings.name
    if settings.name.startswith("pypi:"):
        source = fetch_pypi(settings.name, store.home)
        params = {"sha256": sha256_file(source)}
        if settings.sha256 and params["sha256"] != settings.sha256:
            raise BadInput(
                f"{source} has sha256 {params['sha256']}, not model.sha256", remedy="remove the file and run again, or mend the recipe"
            )
    elif Path(settings.name).expanduser().is_dir():
        source = Path(settings.name).expanduser().resolve()
        params = {"sha256": _folder_digest(source)}
    elif settings.name.startswith((".", "/", "~")):
        raise BadInput(f"model.name: the folder {settings.name} does not exist", remedy="give a folder, a hub id or pypi:…")
    else:
        params["revision"] = _hub_commit(settings)
    return Spec("model", STAGE_VERSION, params), source


def _folder_digest(folder: Path) -> str:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in {".safetensors", ".json", ".jinja", ".model", ".txt"})
    if not any(p.suffix == ".safetensors" for p in files):
        raise BadInput(f"model.name: {folder} holds no .safetensors file", remedy="save the model with save_pretrained")
    return hashlib.sha256("".join(f"{p.name}:{sha256_file(p)};" for p in files).encode()).hexdigest()


def _hub_commit(settings: ModelSettings) -> str:
    """Resolves the branch to a commit, so that one iteration never sees two revisions of a model."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return str(HfApi().model_info(settings.name, revision=settings.revision).sha)
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise BadInput(
            f"model.name: {settings.name} was not found on the hub ({type(error).__name__})",
            remedy="check the id and the network, or give a local folder",
        ) from None
    except Exception as error:  # the hub client raises its HTTP library's own errors when there is no network
        raise BadInput(
            f"model.name: the hub cannot be reached for {settings.name} ({type(error).__name__})",
            remedy="check the network, or give a local folder or a pypi: name",
        ) from None
