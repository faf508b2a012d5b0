"""A model's files from the hub, at one commit: looked at by name first, so that gigabytes of what cannot be used stay there."""

from __future__ import annotations

import glob
from functools import cache
from pathlib import Path

from spin_core.players.files import ADAPTER, READ, WEIGHTS, require_names
from spin_core.runtime.errors import BadInput


def download(name: str, revision: str | None) -> Path:
    """The folder with the files of hub model `name` that an import reads: those that lie at its top, not another format's copies.

    Without a network, what an earlier download of this commit left.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        names = [entry.rfilename for entry in HfApi().model_info(name, revision=revision).siblings or []]
        if names:
            require_names(names, name)
        wanted = [glob.escape(found) for found in names if _wanted(found, names)]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted or None))
    except HfHubHTTPError as error:
        raise BadInput(
            f"model.name: {name} cannot be read from the hub ({type(error).__name__})",
            remedy="check id and revision; for a private or gated one set HF_TOKEN and accept its terms",
        ) from None
    except BadInput:
        raise
    except Exception as error:  # the hub client raises its HTTP library's own errors where there is no network
        try:
            return Path(snapshot_download(name, revision=revision, local_files_only=True))
        except (LocalEntryNotFoundError, OSError, ValueError):
            raise BadInput(
                f"model.name: the hub cannot be reached for {name} ({type(error).__name__})",
                remedy="check the network, or give a local folder",
            ) from None


@cache
def adapter_folder(name: str, commit: str) -> Path | None:
    """The folder with the adapter_config.json of a hub repository at a commit, None where it has none.

    Asked once a process, and not at all for what was downloaded before: a campaign goes on without a network.
    """
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache

    known = try_to_load_from_cache(name, ADAPTER, revision=commit)
    if isinstance(known, str):
        return Path(known).parent
    try:
        names = [entry.rfilename for entry in HfApi().model_info(name, revision=commit, timeout=10.0).siblings or []]
    except Exception:  # the hub's errors, its HTTP library's own: what cannot be read at all, `download` tells
        return None
    return Path(hf_hub_download(name, ADAPTER, revision=commit)).parent if ADAPTER in names else None


def _wanted(file: str, names: list[str]) -> bool:
    if "/" in file:
        return file.startswith("additional_chat_templates/")
    if file.endswith(".safetensors"):
        return file in {WEIGHTS, "adapter_model.safetensors"} or (WEIGHTS not in names and not file.startswith("consolidated"))
    return Path(file).suffix in READ
