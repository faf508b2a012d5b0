"""`spinflow gc`: what a home holds by kind and campaign, and what no campaign needs; removes that when told to."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from spin_core.campaign.keep import Kept, Key, look, size_of
from spin_core.campaign.workspace import cleaning
from spin_core.runtime.errors import BadInput
from spin_core.store import Store


@dataclass(frozen=True)
class Left:
    """Something that is no artifact and that nobody needs."""

    name: str  # for people
    why: str
    bytes: int
    lock: str  # whoever holds it would need it
    remove: Callable[[], None]


def collect(store: Store, delete: bool, console: Console) -> int:
    """Prints what there is; returns the bytes that no campaign needs, which are removed where `delete` says so.

    Raises BadInput where there is no home, or where another process cleans it.
    """
    if not store.all() and not (store.home / "artifacts").is_dir():
        raise BadInput(f"{store.place} holds no artifacts", remedy="give the --home of a run")
    with cleaning(store) if delete else nullcontext():
        kept = look(store)
        left = list(_leftovers(store, kept))
        free = kept.free()
        size = sum(kept.sizes[key] for key in free) + sum(found.bytes for found in left)
        _show(store, kept, left, console)
        if not free and not left:
            console.print("nothing to remove: all of it is needed")
        elif not delete:
            console.print(f"{_bytes(size)} are needed by no campaign; `spinflow gc --delete` removes them", soft_wrap=True)
        else:
            gone = sum(_remove(store, key, kept.sizes[key]) for key in free) + sum(_remove_left(store, found) for found in left)
            console.print(f"removed {_bytes(gone)}")
            return gone
    return size


def _show(store: Store, kept: Kept, left: list[Left], console: Console) -> None:
    free = set(kept.free())
    table = Table(title=f"{store.place}: artifacts")
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
    for found in left:
        console.print(f"left over: {found.name}, {_bytes(found.bytes)}: {found.why}", highlight=False, soft_wrap=True)
    for name, what in (("work", "what unfinished stages go on from"), ("downloads", "files of packages"), ("logs", "of all runs")):
        if size := size_of(store.home / name):
            console.print(f"{name}: {_bytes(size)}, {what}", highlight=False, soft_wrap=True)


def _leftovers(store: Store, kept: Kept) -> Iterator[Left]:
    """What is no artifact and no good to anybody: damaged ones, half-made ones, what stages that nobody would go on with left."""

    def here(path: Path, why: str) -> Left:
        return Left(str(path.relative_to(store.home)), why, size_of(path), path.name, lambda: shutil.rmtree(path, ignore_errors=True))

    yield from (here(path, "was damaged, and set aside") for path in sorted((store.home / "corrupt").glob("*")))
    for folder, lock in ((".staging", ""), (".incoming", "bring-")):
        half_made = sorted((store.home / folder).glob("*"))
        yield from (here(path, "was not finished") for path in half_made if not store.held(store.lock(f"{lock}{path.name}")))
    for path in sorted((store.home / "work").glob("*-*")):
        if not _is_work(store, kept, path.name):
            yield here(path, "no campaign would go on from it")
    if store.shelf:
        yield from (
            Left(found.name, found.why, found.bytes, found.lock, found.remove)
            for found in store.shelf.leftovers()
            if not (_is_work(store, kept, found.lock) if found.name.startswith("work/") else store.held(store.lock(found.lock)))
        )


def _is_work(store: Store, kept: Kept, name: str) -> bool:
    """Whether somebody works in a work folder, or would go on from it."""
    kind, _, digest = name.rpartition("-")
    return (kind, digest) in kept.work or bool(store.held(store.lock(name)))


def _remove(store: Store, key: Key, size: int) -> int:
    """Removes an artifact: it is whole, or under no artifact's name. Nothing where somebody is just making it."""
    ref = store.find(*key)
    with store.locked_if_free(store.lock(ref.name)) as free:
        if not free:
            return 0
        store.remove(ref)
    return size


def _remove_left(store: Store, found: Left) -> int:
    with store.locked_if_free(store.lock(found.lock)) as free:  # of a builder, whose staging and work folders have its lock's name
        if free:
            found.remove()
    return found.bytes if free else 0


def _total(kept: Kept, keys: Iterable[Key]) -> str:
    return _bytes(sum(kept.sizes[key] for key in keys))


def _bytes(size: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} bytes"
