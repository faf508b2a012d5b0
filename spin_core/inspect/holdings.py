"""`spinflow gc`: what a home holds by kind and campaign, and what no campaign needs; removes that when told to."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from uuid import uuid4

from rich.console import Console
from rich.table import Table

from spin_core.campaign.keep import Kept, Key, look, size_of
from spin_core.campaign.workspace import cleaning
from spin_core.runtime.errors import BadInput
from spin_core.store import Store
from spin_core.store.locks import held, locked_if_free


def collect(store: Store, delete: bool, console: Console) -> int:
    """Prints what there is; returns the bytes that no campaign needs, which are removed where `delete` says so.

    Raises BadInput where there is no home, or where another process cleans it.
    """
    if not (store.home / "artifacts").is_dir():
        raise BadInput(f"{store.home} holds no artifacts", remedy="give the --home of a run")
    with cleaning(store) if delete else nullcontext():
        kept = look(store)
        left = list(_leftovers(store, kept))
        free = kept.free()
        size = sum(kept.sizes[key] for key in free) + sum(size_of(path) for path, _ in left)
        _show(store, kept, left, console)
        if not free and not left:
            console.print("nothing to remove: all of it is needed")
        elif not delete:
            console.print(f"{_bytes(size)} are needed by no campaign; `spinflow gc --delete` removes them", soft_wrap=True)
        else:
            gone = sum(_remove(store, key, kept.sizes[key]) for key in free) + sum(_remove_left(store, path) for path, _ in left)
            console.print(f"removed {_bytes(gone)}")
            return gone
    return size


def _show(store: Store, kept: Kept, left: list[tuple[Path, str]], console: Console) -> None:
    free = set(kept.free())
    table = Table(title=f"{store.home}: artifacts")
    for column in ("kind", "number", "size", "needed by none"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind in sorted({kind for kind, _ in kept.sizes}):
        own = [key for key in kept.sizes if key[0] == kind]
        table.add_row(kind, f"{len(own):,}", _total(kept, own), _total(kept, free & {*own}) if free else "")
    table.add_row("all", f"{len(kept.sizes):,}", _total(kept, kept.sizes), _total(kept, free), style="bold")
    console.print(table)
    for name, keys in kept.by_campaign.items():
        others = set[Key]().union(*(found for other, found in kept.by_campaign.items() if other != name))
        alone = _total(kept, keys - others)
        console.print(f"campaign {name} needs {_total(kept, keys)}, {alone} of it alone", highlight=False, soft_wrap=True)
    for why, count in Counter(kept.reasons.values()).most_common():
        total = _total(kept, (key for key, reason in kept.reasons.items() if reason == why))
        console.print(f"kept as well: {count:,} artifacts, {total}: {why}", highlight=False, soft_wrap=True)
    for path, why in left:
        console.print(f"left over: {path.relative_to(store.home)}, {_bytes(size_of(path))}: {why}", highlight=False, soft_wrap=True)
    for name, what in (("work", "what unfinished stages go on from"), ("downloads", "files of packages"), ("logs", "of all runs")):
        if size := size_of(store.home / name):
            console.print(f"{name}: {_bytes(size)}, {what}", highlight=False, soft_wrap=True)


def _leftovers(store: Store, kept: Kept) -> Iterator[tuple[Path, str]]:
    """What is no artifact and no good to anybody: damaged ones, half-made ones, what stages that nobody would go on with left."""
    yield from ((path, "was damaged, and set aside") for path in sorted((store.home / "corrupt").glob("*")))
    yield from ((path, "was not finished") for path in sorted((store.home / ".staging").glob("*")) if not held(store.lock(path.name)))
    for path in sorted((store.home / "work").glob("*-*")):
        kind, _, digest = path.name.rpartition("-")
        if (kind, digest) not in kept.work and not held(store.lock(path.name)):
            yield path, "no campaign would go on from it"


def _remove(store: Store, key: Key, size: int) -> int:
    """Removes an artifact: it is whole, or under no artifact's name. Nothing where somebody is just making it."""
    ref = store.find(*key)
    with locked_if_free(store.lock(f"{ref.kind}-{ref.digest}")) as free:
        if not free:
            return 0
        aside = store.home / ".staging" / f"{ref.kind}-{ref.digest}-{uuid4().hex[:8]}"
        aside.parent.mkdir(exist_ok=True)
        os.rename(ref.path, aside)
    shutil.rmtree(aside, ignore_errors=True)
    return size


def _remove_left(store: Store, path: Path) -> int:
    with locked_if_free(store.lock(path.name)) as free:  # of a builder, whose staging and work folders have its lock's name
        size = size_of(path) if free else 0
        if free:
            shutil.rmtree(path, ignore_errors=True)
    return size


def _total(kept: Kept, keys: Iterable[Key]) -> str:
    return _bytes(sum(kept.sizes[key] for key in keys))


def _bytes(size: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} bytes"
