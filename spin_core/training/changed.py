"""Whether training changed anything."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from spin_core.runtime.errors import BadInput


def prove_changed(before: Path, after: Path) -> None:
    """Raises BadInput where no weight of the model in `after` differs from `before`'s; reads up to the first that does."""
    files: dict[str, Path] = {}
    for file in before.glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            files |= dict.fromkeys(content.keys(), file)
    compared = 0
    for file in sorted(after.glob("*.safetensors")):
        with safe_open(file, "pt") as content:
            for name in content.keys() & files.keys():
                with safe_open(files[name], "pt") as other:
                    if not torch.equal(content.get_tensor(name).float(), other.get_tensor(name).float()):
                        return
                compared += 1
    if compared:
        raise BadInput(f"training changed none of {compared} weights: the next player would be this one", remedy="raise learning_rate")
