"""Locks between processes that end with their holder, and that can say who it is."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_POLL_S = 0.5
Waiting = Callable[[str], None]  # told who holds the lock when a wait begins, and "" when it is over


def nobody(_: str) -> None:
    """For callers who need not hear whom they wait for."""


@contextmanager
def locked(path: Path, waiting: Waiting, what: str = "") -> Iterator[None]:
    """Holds the lock file `path` until the block ends, or its process does. `what` tells others what for."""
    told = False
    while (handle := _taken(path)) is None:
        if not told:
            waiting(holder(path))
        told = True
        time.sleep(_POLL_S)  # polled, so that a signal ends the wait
    if told:
        waiting("")
    with handle:
        handle.write(json.dumps({"pid": os.getpid(), "what": what}))
        handle.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def locked_if_free(path: Path) -> Iterator[bool]:
    """Like `locked`, but gives False at once where somebody holds it."""
    handle = _taken(path)
    if handle is None:
        yield False
        return
    with handle:
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)


def held(path: Path) -> str:
    """Who holds a lock now, for people; empty where nobody does. Takes nothing and writes nothing."""
    try:
        with path.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return ""
    except BlockingIOError:
        return holder(path)
    return ""


def holder(path: Path) -> str:
    """Who holds a lock, for people."""
    with suppress(OSError, ValueError, KeyError):
        found = json.loads(path.read_text())
        return f"process {found['pid']}" + (f" ({found['what']})" if found["what"] else "")
    return "another process"


def _taken(path: Path) -> IO[str] | None:
    """The lock's file, held and empty, or None where somebody else holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = path.open("a+")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if path.stat().st_ino == os.fstat(handle.fileno()).st_ino:  # else its last holder has just removed it
                    handle.truncate(0)
                    return handle
        except BlockingIOError:
            handle.close()
            return None
        handle.close()
