"""An exported folder on the hub, by its own client."""

from __future__ import annotations

from pathlib import Path

from spin_core.runtime.errors import BadInput, SpinflowError


def require_hub_id(hub_id: str) -> None:
    """BadInput for what the hub does not take as a repository's id, and where nobody is logged in."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(hub_id)
    except HFValidationError as error:
        raise BadInput(f"--push {hub_id}: {' '.join(str(error).split())}", remedy="give USER/NAME") from None
    if hub_id.count("/") != 1:
        raise BadInput(f"--push {hub_id}: not an id with its owner", remedy="give USER/NAME")
    if get_token() is None:
        raise BadInput(f"--push {hub_id}: nobody is logged in to the hub", remedy="set HF_TOKEN, or run `hf auth login`")


def push(folder: Path, hub_id: str) -> str:
    """Uploads the folder as one commit; a repository that is not there yet is created, private. Returns the commit's URL.

    Raises BadInput where the hub refuses, SpinflowError where it cannot be reached; the folder stays as it is.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, remedy = HfApi(), f"{folder} is written: push it with `hf upload {hub_id} {folder}`"
    try:
        api.create_repo(hub_id, private=True, exist_ok=True)
        return str(api.upload_folder(folder_path=folder, repo_id=hub_id, commit_message="Export by spinflow").commit_url)
    except HfHubHTTPError as error:
        said = " ".join((error.server_message or str(error)).split())[:300]
        raise BadInput(f"the hub refuses {hub_id}: {said}", remedy=remedy) from None
    except Exception as error:  # its HTTP library's own errors, a broken upload
        raise SpinflowError(
            f"{hub_id} could not be pushed: {type(error).__name__}: {' '.join(str(error).split())[:300]}", remedy=remedy
        ) from None
