"""A home: a folder, or a place in an object store with a folder on this machine that is its cache. Locks, and what is not an artifact."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from spin_core.runtime import surroundings
from spin_core.runtime.errors import SpinflowError
from spin_core.store import locks
from spin_core.store.files import plain, replace_text, whole
from spin_core.store.locks import Waiting
from spin_core.store.names import Ref
from spin_core.store.shares import share

if TYPE_CHECKING:
    from spin_core.store.remote.bucket import Version
    from spin_core.store.remote.mirror import Mirror

CACHE = "SPINFLOW_CACHE"
_CACHES = "~/.cache/spinflow"
_URL = re.compile(r"[a-z0-9]+://.*")


class Home:
    """Where everything of spinflow's is. `home` is the folder on this machine, `url` the place in the object store or empty."""

    def __init__(self, home: Path | str) -> None:
        """A folder, or s3://BUCKET/PREFIX, gs://…, az://…. Raises BadInput for what is neither."""
        self.url = re.sub(r"(?<=[^/:])/+$", "", str(home)) if _URL.fullmatch(str(home)) else ""
        self.home = surroundings.expanded(_cache_of(self.url) if self.url else Path(home))
        self.logs = self.home / "logs"
        self._swept = False
        self.shelf, self._claims, self.bucket = None, None, None
        self._versions: dict[str, Version | None] = {}  # of shared files, as this process read or wrote them last
        self._mirrors: dict[Path, Mirror] = {}
        if self.url:
            from spin_core.store.remote.bucket import Bucket
            from spin_core.store.remote.claims import Claims
            from spin_core.store.remote.shelf import Shelf

            self.bucket = Bucket.at(self.url)
            self.shelf, self._claims = Shelf(self.bucket, self.home), Claims(self.bucket, _name_of(self.home))

    @property
    def place(self) -> str:
        """What people call it."""
        return self.url or str(self.home)

    def log_path(self, name: str) -> Path:
        """The file that a child's output goes to."""
        path = self.logs / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    # locks

    def lock(self, name: str) -> Path:
        """The lock file of what is made under that name."""
        return self.home / "locks" / name

    @contextmanager
    def locked(self, path: Path, waiting: Waiting, what: str = "") -> Iterator[None]:
        """See `locks.locked`; of a home in an object store, against all machines."""
        with locks.locked(path, waiting, what), ExitStack() as also:
            if self._claims:
                also.enter_context(self._claims.held(self._relative(path), waiting, what))
            yield

    @contextmanager
    def locked_if_free(self, path: Path) -> Iterator[bool]:
        """See `locks.locked_if_free`; of a home in an object store, against all machines."""
        with locks.locked_if_free(path) as free, ExitStack() as also:
            if free and self._claims:
                free = also.enter_context(self._claims.held_if_free(self._relative(path)))
            yield free

    def held(self, path: Path) -> str:
        """Who holds a lock now, for people; empty where nobody does."""
        return locks.held(path) or (self._claims.holder(self._relative(path)) if self._claims else "")

    def holders(self) -> dict[str, str]:
        """Who holds the locks of what is made here now, by name."""
        names = {path.name for path in (self.home / "locks").glob("*")}
        if self.bucket:
            names |= {entry.name.split("/")[-1] for entry in self.bucket.list("claims/locks")}
        found = {name: self.held(self.lock(name)) for name in names if not name.startswith("bring-")}
        return {name: who for name, who in found.items() if who}

    # files that are no artifacts

    def campaign_folder(self, campaign: str) -> Path:
        """`<home>/campaigns/<campaign>`. Raises BadInput for a name that would lead out of it."""
        return self.home / "campaigns" / plain(campaign)

    def campaigns(self) -> list[str]:
        """The names of all campaigns, in order."""
        names = {path.name for path in (self.home / "campaigns").glob("*") if path.is_dir()}
        if self.bucket:
            names = {entry.name.split("/")[1] for entry in self.bucket.list("campaigns")}
        return sorted(names)

    def works(self) -> list[str]:
        """The names of the work folders that unfinished stages have left."""
        names = {path.name for path in (self.home / "work").glob("*-*")}
        if self.bucket:
            names |= {entry.name.split("/")[1] for folder in ("work", "shares") for entry in self.bucket.list(folder)}
        return sorted(names)

    def pull(self, file: Path) -> None:
        """Has a shared file as it is in the object store; once a process, since whoever writes it holds its lock."""
        name = self._relative(file)
        if not self.bucket or name in self._versions:
            return
        found = self.bucket.read(name)
        self._versions[name] = found[1] if found else None
        if found:
            replace_text(file, found[0].decode())
        else:
            file.unlink(missing_ok=True)

    def push(self, file: Path) -> None:
        """Has the object store hold a shared file as it is here.

        Raises SpinflowError where another process has written it meanwhile: this one was cut off, and its lock taken over.
        """
        if not self.bucket:
            return
        name, data = self._relative(file), file.read_bytes()
        before = self._versions.get(name)
        after = self.bucket.replace(name, data, before) if before else self.bucket.create(name, data)
        if after is None:
            remedy = "this run was cut off from the store for too long; run again to go on from what is there"
            raise SpinflowError(f"{self.url}/{name} was written by another run meanwhile", remedy=remedy)
        self._versions[name] = after

    def publish(self, file: Path) -> None:
        """Has the object store hold a file that anybody may write, like a page."""
        if self.bucket:
            self.bucket.put(self._relative(file), file.read_bytes())

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(self.home))

    # what a cache needs; nothing of a home that is a folder

    @contextmanager
    def kept(self, refs: Iterable[Ref]) -> Iterator[None]:
        """The copies of these artifacts stay on this machine until the block ends."""
        with ExitStack() as also:
            if self.shelf:
                also.enter_context(self.shelf.cache.kept(refs))
            yield

    @contextmanager
    def brought(self, job: Mapping[str, Any]) -> Iterator[None]:
        """Has all artifacts that a job names here, until the block ends."""
        if not self.shelf:
            yield
            return
        refs = {ref for text in _texts(job) if (ref := self._named(text))}
        with self.shelf.cache.kept(refs):
            for ref in refs:
                self.shelf.bring(ref)
            yield

    def _named(self, text: str) -> Ref | None:
        """The artifact whose folder, or a file in it, a text is the path of."""
        folder = f"{self.home}/artifacts/"
        parts = text.removeprefix(folder).split("/") if text.startswith(folder) else []
        if len(parts) < 2:
            return None
        return Ref(parts[0], parts[1], Path(folder) / parts[0] / parts[1], self.shelf)

    def mirror(self, work: Path) -> None:
        """Goes on from a work folder's copy in the object store, and keeps that up to date, until `end_work`."""
        if self.bucket and work not in self._mirrors:
            from spin_core.store.remote.mirror import Mirror

            mirror = Mirror(self.bucket, work, work.name)
            mirror.begin()
            self._mirrors[work] = mirror

    def end_work(self, work: Path, *, finished: bool) -> None:
        """Nobody works in a folder any more; what was `finished` needs it no more, nor its copy."""
        if mirror := self._mirrors.pop(work, None):
            mirror.end(keep=not finished)
        if finished and self.bucket and work.exists():
            from spin_core.store.remote.mirror import discard

            discard(self.bucket, work.name)
        if finished:
            shutil.rmtree(work, ignore_errors=True)

    def collect(self, files: Iterable[Path]) -> None:
        """Brings pieces that other machines made, see `spin_core.store.shares`, to where they would be if this one had."""
        if not self.bucket:
            return
        for file in files:
            if not file.exists() and (data := self.bucket.get(share(file))) is not None:
                with whole(file) as part:
                    part.write_bytes(data)


def _cache_of(url: str) -> Path:
    """The folder on this machine for a place in an object store."""
    words = re.sub(r"[^a-z0-9.-]+", "-", url.partition("://")[2].lower())[:60].strip("-.")
    return Path(os.environ.get(CACHE) or _CACHES) / f"{words}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


def _name_of(cache: Path) -> str:
    """A cache folder's own name among all machines."""
    file = cache / "cache-id"
    if not file.exists():
        with locks.locked(cache / "locks" / "cache-id", locks.nobody):
            if not file.exists():
                replace_text(file, uuid4().hex)
    return file.read_text()


def _texts(value: Any) -> Iterator[str]:
    """All strings in what JSON can say."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _texts(one)
