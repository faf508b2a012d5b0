"""Hub names resolved to commits, so that a campaign reads one revision of its model and data from its first stage to its last."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from spin_core.runtime.errors import BadInput

_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w-]+")
Kind = Literal["model", "data"]


def on_hub(name: str) -> bool:
    """Whether a `name` of the recipe means a repository of the hub: no path, package or built-in."""
    if name == "demo" or name.startswith((".", "/", "~", "pypi:")) or not _HUB_ID.fullmatch(name):
        return False
    return not Path(name).exists()


def is_commit(revision: str | None) -> bool:
    """Whether a revision names one state of a repository for good."""
    return revision is not None and _COMMIT.fullmatch(revision) is not None


def resolve(kind: Kind, name: str, revision: str | None) -> str:
    """The commit that a branch or tag (None: the default branch) stands at now. Raises BadInput that says what to set."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError

    if revision is not None and is_commit(revision):
        return revision
    api = HfApi()
    asked = api.model_info if kind == "model" else api.dataset_info
    try:
        return str(asked(name, revision=revision).sha)
    except (HfHubHTTPError, HFValidationError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
        if status in {401, 403} or isinstance(error, GatedRepoError):
            raise BadInput(
                f"{kind}.name: the hub does not show {name} to you ({status})",
                remedy="set HF_TOKEN to a token that may read it, accept its terms on the hub, or mend the id",
            ) from None
        raise BadInput(
            f"{kind}.name: {name} is neither a path here nor on the hub" + (f" at revision {revision}" if revision else ""),
            remedy=f"check the id and {kind}.revision, or give a local path",
        ) from None
    except Exception as error:  # the hub client raises its HTTP library's own errors when there is no network
        raise BadInput(
            f"{kind}.name: {name} is no path here, and the hub cannot be reached ({type(error).__name__})",
            remedy="check the path or the network, or download it and give its folder",
        ) from None
