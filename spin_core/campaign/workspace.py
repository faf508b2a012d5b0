"""What people look into: links to a campaign's artifacts, and a folder of logs a run."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from spin_core.campaign.ledger import Ledger, Turn
from spin_core.store import Store
from spin_core.store.files import replace_link
from spin_core.store.locks import locked


def open_run_logs(store: Store, campaign: str) -> Path:
    """From now on `store.log_path` gives files in a folder of this run's own; `logs/latest` points at the newest."""
    store.logs = store.home / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{campaign}-{uuid4().hex[:4]}"
    store.logs.mkdir(parents=True)
    replace_link(store.logs.parent / "latest", store.logs.name)
    return store.logs


@contextmanager
def campaign_lock(store: Store, campaign: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """One run of a campaign at a time; a run that dies lets go of it. `waiting` is told who holds it, and "" at the end."""
    with locked(store.campaign_folder(campaign) / ".lock", waiting, f"campaign {campaign}"):
        yield


def link(store: Store, campaign: str) -> None:
    """Makes `campaigns/<campaign>/iter-<t>/<name>` point at the artifacts of the ledger's turns, and at nothing else."""
    folder = store.campaign_folder(campaign)
    turns = Ledger(store, campaign).turns()
    for turn in turns:
        _link(folder / f"iter-{turn.iteration}", turn)
    for old in folder.glob("iter-*"):
        if int(old.name.removeprefix("iter-")) >= len(turns):
            shutil.rmtree(old)


def _link(folder: Path, turn: Turn) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = {name: ref for name in turn.made if name not in _SHARDS for ref in turn.refs(name)}
    names |= {f"{prefix}-shard-{i:03d}": ref for name, prefix in _SHARDS.items() for i, ref in enumerate(turn.refs(name))}
    for old in folder.iterdir():
        if old.name not in names:
            old.unlink()
    for name, ref in names.items():
        target = os.path.relpath(ref.path, folder)
        if not (folder / name).is_symlink() or os.readlink(folder / name) != target:
            replace_link(folder / name, target)


_SHARDS = {"train_shards": "train", "test_shards": "test", "new_shards": "new"}  # in the ledger → in the folder
