"""Pieces that several children make side by side: each once, whoever dies."""

import threading
import time
from pathlib import Path

import pytest

from spin_core.runtime.errors import ChildCrash
from spin_core.store import Store
from spin_core.store.shares import require_whole, share, untaken
from tests.s3 import s3


def work(folder: Path, shared: str, names: list[str], done: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in untaken([folder / name for name in names], shared):
        time.sleep(0.1)
        file.write_text(file.name)
        done.append(file.name)


def test_machines_without_a_common_folder_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, every node scores all rows."""
    names = [f"piece-{number}" for number in range(8)]
    with s3() as server:
        monkeypatch.setenv("SPINFLOW_CACHE", str(tmp_path / "flow"))
        done: list[str] = []
        machines = [
            threading.Thread(target=work, args=(tmp_path / machine / "work" / "reference-1", server.url, names, done)) for machine in "abc"
        ]
        for machine in machines:
            machine.start()
        for machine in machines:
            machine.join()
        assert sorted(done) == names
        assert len([*(tmp_path / "a" / "work" / "reference-1").iterdir()]) < 8
        store = Store(server.url)
        files = [store.home / "work" / "reference-1" / name for name in names]
        with pytest.raises(ChildCrash, match="8 parts of 8"):
            require_whole(files, "score")
        store.collect(files)
        require_whole(files, "score")
        assert [file.read_text() for file in files] == names
        assert store.works() == ["reference-1"]
        store.end_work(files[0].parent, finished=True)
        assert store.bucket is not None
        assert not [*store.bucket.list("")]
        assert share(files[0]) == "shares/reference-1/piece-0"


def test_a_piece_that_failed_is_left_to_the_next(tmp_path: Path) -> None:
    with s3() as server:
        names = ["one", "two"]
        folder = tmp_path / "work" / "reference-1"
        folder.mkdir(parents=True)
        for file in untaken([folder / name for name in names], server.url):
            if file.name == "one":
                break  # its child dies
        done: list[str] = []
        work(tmp_path / "other" / "work" / "reference-1", server.url, names, done)
        assert done == names
