"""A tiny campaign whose home is in an S3 server, on machines that come and go, each with a disk of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from spin_core.campaign.ledger import Ledger
from spin_core.contracts.rows import TEST_FILE, TRAIN_FILE
from spin_core.contracts.tables import read_rows
from spin_core.store import Store
from tests.chaos.campaign import Campaign
from tests.s3 import S3


class InBucket(Campaign):
    """Every run may be on another machine: `cache` is the disk of the one that is used now."""

    def __init__(self, folder: Path, model: Path, server: S3, *, rows: int, iterations: int, say: Callable[[str], None] = print) -> None:
        super().__init__(folder, model, "transformers", rows=rows, iterations=iterations, say=say)
        self._server, self.url = server, server.url
        self.made: dict[str, float] = {}  # when each manifest was written
        self.use("a")

    def use(self, machine: str) -> None:
        """The next run is on this machine."""
        self.environment = {**os.environ, **self._server.environment, "SPINFLOW_CACHE": str(self.folder / machine)}

    @property
    def place(self) -> str:
        return self.url

    def watch(self) -> None:
        """Nothing is written twice, or goes away; `look` asks."""

    def look(self) -> None:
        """Asks the store, as a machine that knows nothing."""
        store = self.store("watch")
        assert store.bucket is not None
        now = {entry.name: entry.changed for entry in store.bucket.list("manifests")}
        for name, when in self.made.items():
            assert now.get(name) == when, f"{name} was finished, and done again"
        self.made = now

    def store(self, machine: str) -> Store:
        """The home as a machine sees it."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SPINFLOW_CACHE", str(self.folder / machine))
            return Store(self.url)

    def check(self) -> None:
        """Every row exactly once in the pairs of every iteration, and nothing left over, for a machine that comes new to it."""
        self.look()
        store = self.store("check")
        turns = Ledger(store, "tiny").whole_turns()
        assert len(turns) == self.iterations
        encoded = turns[0].ref("encoded").path
        wanted = {split: sorted(r["row_id"] for r in read_rows(encoded / f"{split}.parquet", ["row_id"])) for split in ("train", "test")}
        for turn in turns:
            pairs, found = turn.ref("pairs").path, dict[int, list[str]]()
            for row in read_rows(pairs / TRAIN_FILE, ["row_id", "iteration"]):
                found.setdefault(row["iteration"], []).append(row["row_id"])
            assert set(found) == set(range(max(0, turn.iteration - 1), turn.iteration + 1))
            for rows in found.values():
                assert sorted(rows) == wanted["train"]
            assert sorted(r["row_id"] for r in read_rows(pairs / TEST_FILE, ["row_id"])) == wanted["test"]
        assert store.bucket is not None
        assert store.works() == [], "resume state of finished work stays"
        left = {entry.name.partition("/")[0] for entry in store.bucket.list("")} - {"manifests", "files", "campaigns"}
        assert left <= {"sessions"}, "that of a run which was killed before it claimed anything goes with a gc a day later"
