"""Files that are whole or as they were: checksums, flushing, replacing."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from uuid import uuid4

from spin_core.runtime.errors import BadInput

_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, as hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def content_digest(path: Path) -> str:
    """`sha256_file` of an input, read once a process as long as the file stays as it is."""
    found = path.stat()
    return _content_digest(path.resolve(), found.st_size, found.st_mtime_ns)


@cache
def _content_digest(path: Path, _size: int, _changed: int) -> str:
    return sha256_file(path)


def fsync(path: Path) -> None:
    """Has the disk hold what was written to a file, or to a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Gives a name to write to beside `path`, which takes its place once the block has ended well and the disk holds what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}-{uuid4().hex[:8]}")
    try:
        yield part
        fsync(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def replace_link(path: Path, target: str) -> None:
    """Has the link `path` point at `target`, whether it was there before or not."""
    temporary = path.with_name(f".{path.name}-{uuid4().hex[:8]}")
    temporary.symlink_to(target)
    os.replace(temporary, path)


def plain(name: str) -> str:
    """`name`, if it names something inside a folder and nothing outside it."""
    if not _PLAIN.fullmatch(name):
        raise BadInput(f"{name!r} cannot name a file", remedy="use letters, digits, dots and dashes")
    return name
