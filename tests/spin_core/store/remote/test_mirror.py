"""What an unfinished stage goes on from, for a machine that did not begin it."""

import json
import shutil
import time
from pathlib import Path

import pytest

from spin_core.runtime.errors import ChildCrash
from spin_core.store import Spec, Store
from spin_core.store.remote import mirror, moving
from spin_core.store.remote.mirror import Mirror
from tests.spin_core.cluster.nodes import wait_until
from tests.spin_core.store.remote.conftest import Machine

SPEC = Spec("model", 1, {"lr": 1})


def crash(store: Store, steps: dict[str, str], found: dict[str, str], seen: list[str] | None = None) -> None:
    """A training that finds `found` in its work folder, gets so far, and dies."""

    def write(out: Path) -> None:
        work = store.work_dir(SPEC)
        there = {str(file.relative_to(work)): file.read_text() for file in work.rglob("*") if file.is_file() and file.name[0] != "."}
        assert there == found
        for old in found:
            (work / old).unlink()
        for name, text in steps.items():
            (work / name).parent.mkdir(exist_ok=True)
            (work / name).write_text(text)
        raise ChildCrash("killed", exit_code=-9)

    with pytest.raises(ChildCrash):
        store.build(SPEC, write)


def test_another_machine_goes_on(machine: Machine) -> None:
    crash(machine("a"), {"ckpt-1/state": "one", "log": "1"}, {})
    crash(machine("b"), {"ckpt-2/state": "two", "log": "12"}, {"ckpt-1/state": "one", "log": "1"})
    crash(machine("a"), {"ckpt-3/state": "three"}, {"ckpt-2/state": "two", "log": "12"})
    crash(machine("a"), {}, {"ckpt-3/state": "three"})  # its own, which is the newest


def test_nothing_stays_of_what_was_finished(machine: Machine) -> None:
    crash(machine("a"), {"ckpt-1/state": "one"}, {})
    store = machine("b")
    assert store.works() == ["model-" + SPEC.digest]

    def write(out: Path) -> None:
        work = store.work_dir(SPEC)
        (out / "model").write_text((work / "ckpt-1" / "state").read_text())

    store.build(SPEC, write)
    assert [entry.name for entry in store.bucket.list("") if entry.name.startswith("work")] == []
    assert machine("c").works() == []


def test_it_is_sent_while_the_work_goes_on(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that loses power says no farewell. What is made anew faster than it is moved stays here."""
    monkeypatch.setattr(mirror, "EVERY_S", 0.1)
    store = machine("a")

    def sent() -> dict[str, str]:
        """What another machine would begin with."""
        assert store.bucket is not None
        files = json.loads(store.bucket.get(f"work/{SPEC.name}/0/INDEX.json") or b"{}").get("files", {})
        moving.fetch(store.bucket, f"work/{SPEC.name}/0", files, tmp_path / "look", lambda size: None)
        return {name: (tmp_path / "look" / name).read_text() for name in files}

    def write(out: Path) -> None:
        work = store.work_dir(SPEC)
        (work / "rows.arrow").write_bytes(b"x" * 1000)
        for step in range(1, 4):
            (work / "state").write_text(f"{step}" * 100)
            wait_until(lambda step=step: sent() == {"state": f"{step}" * 100})

    store.build(SPEC, write)


def test_who_was_replaced_writes_no_more(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was cut off in mid-training comes back, and its old checkpoints must not lie over newer ones."""
    monkeypatch.setattr(mirror, "EVERY_S", 0.1)
    a, b = machine("a"), machine("b")
    old = a.work_dir(SPEC)
    (old / "state").write_text("1")
    wait_until(lambda: (old / ".mirrored").is_file() and "state" in (old / ".mirrored").read_text())
    new = b.work_dir(SPEC)
    assert (new / "state").read_text() == "1"
    (new / "state").write_text("222")
    (old / "state").write_text("11")
    b.end_work(new, finished=False)
    a.end_work(old, finished=False)
    assert (machine("c").work_dir(SPEC) / "state").read_text() == "222"


def test_machines_that_train_together_keep_their_own(machine: Machine, tmp_path: Path) -> None:
    """Each writes its part of a checkpoint; all of them begin with all parts, however many there are then."""
    bucket = machine("a").bucket
    assert bucket is not None

    def mirrors(count: int, run: str) -> list[tuple[Mirror, Path]]:
        found = [(tmp_path / f"{run}-{rank}" / SPEC.name, rank) for rank in range(count)]
        begun = [(Mirror(bucket, folder, SPEC.name, rank), folder) for folder, rank in found]
        for one, folder in begun:
            folder.mkdir(parents=True)
            one.begin()
        return begun

    def write(pairs: list[tuple[Mirror, Path]], step: int) -> None:
        for rank, (one, folder) in enumerate(pairs):
            for old in folder.glob("ckpt-*"):
                shutil.rmtree(old)
            (folder / f"ckpt-{step}").mkdir()
            (folder / f"ckpt-{step}" / f"part-{rank}").write_text(f"{step}-{rank}")
            one.copy()

    first = mirrors(2, "first")
    write(first, 1)
    for one, _ in first:
        one.end()
    second = mirrors(2, "second")
    assert all([*map(str, sorted(folder.rglob("part-*")))] == [f"{folder}/ckpt-1/part-{rank}" for rank in (0, 1)] for _, folder in second)
    second[1][0].copy()
    assert len([*bucket.list(f"work/{SPEC.name}/1")]) == 2, "what came from another machine is that one's to keep"
    write(second, 2)
    write(second, 3)
    for one, _ in second:
        one.end()
    ((alone, folder),) = mirrors(1, "third")
    assert {file.read_text() for file in folder.rglob("part-*")} == {"3-0", "3-1"}
    alone.end()


def test_a_store_that_is_away_does_not_stop_the_work(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from spin_core.runtime.errors import Unreachable

    monkeypatch.setattr(mirror, "EVERY_S", 0.05)
    monkeypatch.setattr(mirror.moving, "send", lambda *args: (_ for _ in ()).throw(Unreachable("away")))
    store = machine("a")

    def write(out: Path) -> None:
        (store.work_dir(SPEC) / "state").write_text("x")
        time.sleep(0.3)
        (out / "model").write_text("x")

    monkeypatch.setattr(type(store.shelf), "send", lambda *args: {})
    assert store.build(SPEC, write).here
