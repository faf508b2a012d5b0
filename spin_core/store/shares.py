"""Pieces of one stage that several children make side by side: which are nobody's yet, and whether all are there."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from uuid import uuid4

from spin_core.runtime.errors import ChildCrash
from spin_core.store.locks import locked_if_free


def untaken(files: Iterable[Path], shared: str = "") -> Iterator[Path]:
    """Those that are not there and that no other process makes; each is this one's to make until the next is asked for.

    `shared` is the object store of machines that have no folder in common; a piece is there when it is in it. A process that dies
    gives back what it had.
    """
    if shared:
        yield from _untaken_anywhere(files, shared)
        return
    for file in files:
        with locked_if_free(file.with_suffix(".lock")) as free:
            if free and not file.exists():
                yield file


def _untaken_anywhere(files: Iterable[Path], shared: str) -> Iterator[Path]:
    from spin_core.store.remote.bucket import Bucket
    from spin_core.store.remote.claims import Claims

    bucket = Bucket.at(shared)
    claims = Claims(bucket, uuid4().hex)
    for file in files:
        name = share(file)
        if bucket.has(name):
            continue
        with claims.held_if_free(name) as free:
            if free and not bucket.has(name):
                yield file
                if file.exists():
                    bucket.put(name, file.read_bytes())


def share(file: Path) -> str:
    """What a piece in a work folder is called in an object store."""
    return f"shares/{file.parent.name}/{file.name}"


def require_whole(files: Collection[Path], what: str) -> None:
    """Raises ChildCrash where one of them is missing: the claims of a node that was lost live on for a while."""
    if left := sum(not file.exists() for file in files):
        raise ChildCrash(f"{what}: {left} parts of {len(files)} were left undone", exit_code=-1, remedy="run again to continue")
