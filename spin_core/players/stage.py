"""The stage `model` of θ_0: a hub model, a local folder, or a GGUF file from a Python package."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.recipe import ModelSettings
from spin_core.runtime.errors import BadInput
from spin_core.runtime.launcher import Launcher
from spin_core.sources.fetch import fetch_pypi
from spin_core.sources.pins import on_hub, resolve
from spin_core.store import Spec, content_digest

STAGE_VERSION = 2
_FILES = {".safetensors", ".json", ".jinja", ".model", ".txt"}


@dataclass(frozen=True)
class Import:
    """Saves the recipe's model as safetensors with its tokenizer."""

    settings: ModelSettings
    home: Path
    label: str = "import model"

    def spec(self) -> Spec:
        """The model's content where that is at hand, the hub's commit otherwise; a package's file is named, since packages never change."""
        name = self.settings.name
        if name.startswith("pypi:"):
            return Spec("model", STAGE_VERSION, {"package": name})
        if (folder := Path(name).expanduser()).is_dir():
            return Spec("model", STAGE_VERSION, {"content": _folder_digest(folder)})
        if not on_hub(name):
            raise BadInput(f"model.name: the folder {name} does not exist", remedy="give a folder, a hub id or pypi:…")
        return Spec("model", STAGE_VERSION, {"hub": name, "commit": self._commit()})

    def _commit(self) -> str:
        return resolve("model", self.settings.name, self.settings.revision)

    def run(self, out: Path, on: Launcher) -> None:
        """Converts the model in a child."""
        source, revision = self._source()
        job: dict[str, Any] = {"source": str(source), "revision": revision, "trust": self.settings.trust_remote_code, "out": str(out)}
        on.job("spin_core.players.job", job, f"model-{self.spec().digest}", "importing the model")

    def _source(self) -> tuple[str | Path, str | None]:
        name = self.settings.name
        if name.startswith("pypi:"):
            file = fetch_pypi(name, self.home)
            found = content_digest(file)
            if self.settings.sha256 not in {None, found}:
                raise BadInput(f"{file} has sha256 {found}, not model.sha256", remedy="remove the file and run again, or mend the recipe")
            return file, None
        folder = Path(name).expanduser()
        return (folder.resolve(), None) if folder.is_dir() else (name, self._commit())


def _folder_digest(folder: Path) -> str:
    files = sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _FILES)
    if not any(p.suffix == ".safetensors" for p in files):
        raise BadInput(f"model.name: {folder} holds no .safetensors file", remedy="save the model with save_pretrained")
    return hashlib.sha256("".join(f"{p.name}:{content_digest(p)};" for p in files).encode()).hexdigest()
