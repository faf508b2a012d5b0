"""What people look into: links to a campaign's artifacts, and a folder of logs a run."""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from spin_core.campaign.ledger import Ledger, Turn, model_of
from spin_core.campaign.rules import best_of
from spin_core.recipe import StopSettings
from spin_core.runtime.errors import BadInput
from spin_core.store import Ref, Store
from spin_core.store.files import replace_link


def open_run_logs(store: Store, campaign: str) -> Path:
    """From now on `store.log_path` gives files in a folder of this run's own; `logs/latest` points at the newest."""
    store.logs = store.home / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{campaign}-{uuid4().hex[:4]}"
    store.logs.mkdir(parents=True)
    replace_link(store.logs.parent / "latest", store.logs.name)
    return store.logs


def latest_logs(store: Store, campaign: str) -> Path | None:
    """The log folder of a campaign's newest run."""
    ours = re.compile(rf"\d{{8}}-\d{{6}}-{re.escape(campaign)}-[0-9a-f]{{4}}")
    return max((path for path in (store.home / "logs").glob("*") if ours.fullmatch(path.name)), key=lambda path: path.name, default=None)


@contextmanager
def campaign_lock(store: Store, campaign: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """One run of a campaign at a time; a run that dies lets go of it. `waiting` is told who holds it, and "" at the end.

    A run begins when nobody removes anything from the home: what it finds then is there until it ends, see `cleaning`.
    """
    what = f"campaign {campaign}"
    with store.locked(_lock(store, campaign), waiting, what):
        with store.locked(_broom(store), waiting, what):
            pass
        yield


@contextmanager
def cleaning(store: Store) -> Iterator[None]:
    """No campaign begins until the block ends; those that have begun hold their locks. Raises BadInput where another one cleans."""
    with store.locked_if_free(_broom(store)) as free:
        if not free:
            raise BadInput(f"{store.place} is being cleaned by {store.held(_broom(store)) or 'another process'}", remedy="wait for it")
        yield


def running(store: Store, campaign: str) -> str:
    """Which process runs a campaign now, for people; empty where none does."""
    return store.held(_lock(store, campaign))


def _lock(store: Store, campaign: str) -> Path:
    return store.campaign_folder(campaign) / ".lock"


def _broom(store: Store) -> Path:
    return store.lock("broom")


def link(store: Store, campaign: str, stop: StopSettings) -> None:
    """Makes `campaigns/<campaign>/iter-<t>/<name>` point at the artifacts of the ledger's turns and at nothing else, and `best` at
    the best model."""
    folder = store.campaign_folder(campaign)
    ledger = Ledger(store, campaign)
    turns = ledger.turns()
    if whole := ledger.whole_turns():
        _point(folder / "best", model_of(whole, best_of(whole, stop)))
    for turn in turns:
        _link(folder / f"iter-{turn.iteration}", turn)
    for old in folder.glob("iter-*"):
        if int(old.name.removeprefix("iter-")) >= len(turns):
            shutil.rmtree(old)


def _link(folder: Path, turn: Turn) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {name: ref for name, ref in turn.made.items() if isinstance(ref, Ref)}
    shards = ((name.removesuffix("_shards").replace("_", "-"), refs) for name, refs in turn.made.items() if not isinstance(refs, Ref))
    names |= {f"{name}-shard-{i:03d}": ref for name, refs in shards for i, ref in enumerate(refs)}
    for old in folder.iterdir():
        if old.name not in names:
            old.unlink()
    for name, ref in names.items():
        _point(folder / name, ref)


def _point(link: Path, ref: Ref) -> None:
    target = os.path.relpath(ref.folder, link.parent)
    if not link.is_symlink() or os.readlink(link) != target:
        replace_link(link, target)
