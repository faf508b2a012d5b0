"""Who makes what, for processes that share an object store and no disk.

A claim is an object that names a session; a session is an object that its process writes anew every few seconds. A claim counts as long
as its session lives: whoever waits watches the session, and takes the claim over once that has not changed for a minute of the
waiter's own clock. So no two machines' clocks are compared, and a thousand claims cost one heartbeat.

A process that was cut off for longer may find its claim taken. Then two make the same thing, and the conditional write of its manifest
or ledger decides.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from spin_core.runtime.errors import SpinflowError
from spin_core.store.locks import Waiting
from spin_core.store.remote.bucket import Bucket, Version

EXPIRES_S = 60.0
_BEAT_S, _POLL_S = 15.0, 2.0
_LONG_AGO_S = 1200.0  # by two clocks; with more between them, S3 refuses a request's signature


class Claims:
    """This process's claims. `cache` names the folder whose own locks it holds while it asks for one: whoever claims with the same
    name and does not hold that lock any more is dead."""

    def __init__(self, bucket: Bucket, cache: str) -> None:
        self._bucket, self._cache = bucket, cache
        self._session, self._beating, self._held = uuid4().hex, threading.Event(), 0
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[Version, float]] = {}  # others' sessions: their state, and since when it is that
        self._late = 0.0  # when this session's last beat was

    @contextmanager
    def held(self, name: str, waiting: Waiting, what: str = "") -> Iterator[None]:
        """Holds a claim until the block ends. `waiting` is told who has it, and "" at the end of a wait."""
        told = False
        while (mine := self._taken(name, what)) is None:
            if not told:
                waiting(self.holder(name) or "another machine")
            told = True
            time.sleep(_POLL_S * random.uniform(0.75, 1.25))
        if told:
            waiting("")
        try:
            yield
        finally:
            self._give_back(name, mine)

    @contextmanager
    def held_if_free(self, name: str) -> Iterator[bool]:
        """Like `held`, but gives False at once where somebody else has it."""
        mine = self._taken(name, "")
        try:
            yield mine is not None
        finally:
            if mine is not None:
                self._give_back(name, mine)

    def holder(self, name: str) -> str:
        """Who holds a claim now, for people; empty where nobody does. Takes nothing and writes nothing."""
        found = self._bucket.get(f"claims/{name}")
        if found is None:
            return ""
        claim = json.loads(found)
        return str(claim["who"]) if self._session_of(claim) and claim["cache"] != self._cache else ""

    def _taken(self, name: str, what: str) -> bytes | None:
        """The claim's content where it is this process's now."""
        self._begin()
        who = f"process {os.getpid()} on {socket.gethostname()}" + (f" ({what})" if what else "")
        claim = {"session": self._session, "cache": self._cache, "who": who, "claim": uuid4().hex}
        mine, key = json.dumps(claim).encode(), f"claims/{name}"
        try:
            won = self._won(key, mine)
        except BaseException:
            self._end()
            raise
        if not won:
            self._end()
        return mine if won else None

    def _won(self, key: str, mine: bytes) -> bool:
        while self._bucket.create(key, mine) is None:
            found = self._bucket.read(key)
            if found is not None:  # else it was given back between two looks
                return self._taken_over(key, mine, json.loads(found[0]), found[1])
        return True

    def _taken_over(self, key: str, mine: bytes, claim: dict[str, Any], version: Version) -> bool:
        if not self._is_dead(claim) or self._bucket.replace(key, mine, version) is None:
            return False
        if claim["session"] != self._session:  # what else it claimed is free at once
            self._bucket.delete([f"sessions/{claim['session']}"])
        return True

    def _give_back(self, name: str, mine: bytes) -> None:
        key = f"claims/{name}"
        try:
            if time.monotonic() - self._late < EXPIRES_S / 2 or self._bucket.get(key) == mine:  # else somebody may have taken it over
                self._bucket.delete([key])
        finally:
            self._end()

    # whose session lives

    def _is_dead(self, claim: dict[str, Any]) -> bool:
        return claim["cache"] == self._cache or self._session_of(claim) is None

    def _session_of(self, claim: dict[str, Any]) -> Version | None:
        """The state of a claim's session, or None where that is over."""
        session = claim["session"]
        found = self._bucket.read(f"sessions/{session}")
        if found is None:
            return None
        beat, version = json.loads(found[0])["beat"], found[1]
        with self._lock:
            before, since = self._seen.get(session, (None, time.monotonic()))
            if before != version:
                since = time.monotonic()
            self._seen[session] = (version, since)
        over = time.monotonic() - since > EXPIRES_S or time.time() - beat > _LONG_AGO_S
        return None if over else version

    # this process's own

    def _begin(self) -> None:
        with self._lock:
            self._held += 1
            if self._held == 1:
                self._beat()
                self._beating = threading.Event()
                threading.Thread(target=self._beat_on, args=(self._beating,), daemon=True, name="claims").start()

    def _end(self) -> None:
        with self._lock:
            self._held -= 1
            if self._held == 0:
                self._beating.set()
                self._bucket.delete([f"sessions/{self._session}"])

    def _beat(self) -> None:
        self._bucket.put(f"sessions/{self._session}", json.dumps({"beat": time.time()}).encode())
        self._late = time.monotonic()

    def _beat_on(self, over: threading.Event) -> None:
        while not over.wait(_BEAT_S):
            try:
                with self._lock:
                    if not over.is_set():
                        self._beat()
            except SpinflowError:
                continue  # the store cannot be reached; what happened meanwhile is found out by the next write
