"""The stage `model` of θ_0: a hub model, a local folder or `.gguf` file, or a GGUF file from a Python package."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spin_core.encoding.template import template_text
from spin_core.players.adapter import Base, base_of
from spin_core.players.files import READ
from spin_core.players.hub import adapter_folder
from spin_core.recipe import ModelSettings
from spin_core.runtime.errors import BadInput
from spin_core.runtime.launcher import Launcher
from spin_core.sources.fetch import fetch_pypi
from spin_core.sources.pins import on_hub, resolve
from spin_core.store import Spec, content_digest

STAGE_VERSION = 3


@dataclass(frozen=True)
class Import:
    """Saves the recipe's model as safetensors with its tokenizer, an adapter merged into its base."""

    settings: ModelSettings
    home: Path
    label: str = "import model"

    def spec(self) -> Spec:
        """The model's content where that is at hand, the hub's commit otherwise; a package's file is named, since packages never change.

        An adapter's has its base's beside it, and the recipe's template is part of it.
        """
        name = self.settings.name
        if name.startswith("pypi:"):
            return Spec("model", STAGE_VERSION, {"package": name} | self._template)
        identity = _content(Path(name).expanduser())
        if identity is None and not on_hub(name):
            raise BadInput(f"model.name: the folder {name} does not exist", remedy="give a folder, a .gguf file, a hub id or pypi:…")
        identity = identity or {"hub": name, "commit": self._commit()}
        base = self._base()
        if base:
            identity["base"] = _content(Path(base.name)) or {"hub": base.name, "commit": base.revision}
        return Spec("model", STAGE_VERSION, identity | self._template)

    @property
    def _template(self) -> dict[str, str]:
        return {"chat_template": template_text(self.settings.chat_template)} if self.settings.chat_template else {}

    def pinned_base(self) -> str:
        """`model.base` as it is now: the base of a hub adapter, empty for a whole model."""
        base = self._base()
        return f"{base.name}@{base.revision}" if base else ""

    def _commit(self) -> str:
        return resolve("model", self.settings.name, self.settings.revision)

    def _base(self) -> Base | None:
        """What an adapter is to be merged into, at a commit where it is on the hub."""
        if self.settings.base is not None:
            name, _, commit = self.settings.base.rpartition("@")
            return Base(name, commit) if name else None
        folder = Path(self.settings.name).expanduser()
        place = folder if folder.exists() else adapter_folder(self.settings.name, self._commit())
        base = base_of(place, self.settings.name) if place and place.is_dir() else None
        if base is None or Path(base.name).is_dir():
            return base
        return Base(base.name, resolve("model", base.name, base.revision))

    def run(self, out: Path, on: Launcher) -> None:
        """Converts the model in a child."""
        source, revision = self._source()
        base = None if self.settings.name.startswith("pypi:") else self._base()
        job: dict[str, Any] = {"source": str(source), "revision": revision, "base": base and asdict(base), "out": str(out)}
        job |= self._template
        on.job("spin_core.players.job", job, f"model-{self.spec().digest}", "importing the model")

    def _source(self) -> tuple[str | Path, str | None]:
        name = self.settings.name
        if name.startswith("pypi:"):
            return self._expected(fetch_pypi(name, self.home)), None
        path = Path(name).expanduser()
        if path.is_dir():
            return path.resolve(), None
        return (self._expected(path.resolve()), None) if path.is_file() else (name, self._commit())

    def _expected(self, file: Path) -> Path:
        found = content_digest(file)
        if self.settings.sha256 not in {None, found}:
            raise BadInput(f"{file} has sha256 {found}, not model.sha256", remedy="remove the file and run again, or mend the recipe")
        return file


def _content(path: Path) -> dict[str, Any] | None:
    """The identity of a folder or `.gguf` file that is there, by its bytes."""
    if path.suffix == ".gguf" and path.is_file():
        return {"content": content_digest(path)}
    if not path.is_dir():
        return None
    files = sorted(p for p in path.iterdir() if p.is_file() and p.suffix in READ)
    return {"content": hashlib.sha256("".join(f"{p.name}:{content_digest(p)};" for p in files).encode()).hexdigest()}
