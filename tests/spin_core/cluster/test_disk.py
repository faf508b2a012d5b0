"""A node's own disk: a job finds there what it names, what it makes is sent, and its work goes on on another node."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spin_core.cluster.disk import Disk, Made, RunHome
from spin_core.runtime.launcher import Launcher
from spin_core.store import Ref, Spec, Store
from tests.s3 import S3, s3

MODEL, TRAINED = Spec("model", 1, {"n": 0}), Spec("model", 1, {"n": 1})


@pytest.fixture
def server() -> Iterator[S3]:
    with s3() as found:
        yield found


def store(server: S3, folder: Path, patch: pytest.MonkeyPatch) -> Store:
    patch.setenv("SPINFLOW_CACHE", str(folder))
    return Store(server.url)


def run(disk: Disk, job: dict[str, Any], rank: int | None, *, steps: int, die: bool = False) -> list[Made]:
    """As a training: goes on from its work folder, writes there, and a large and a small file at the end."""
    made: list[Made] = []
    try:
        with disk.job(job, rank, made.append) as here:
            assert (Path(here["model"]) / "weights").read_text() == "θ_0"
            work, out = Path(here["work"]), Path(here["out"])
            begun = int((work / "step").read_text()) if (work / "step").exists() else 0
            (work / "step").write_text(f"{begun + steps}")
            if die:
                raise RuntimeError
            (out / "weights").write_bytes(b"x" * (2 * 2**20))
            (out / "metrics.jsonl").write_text(f"{begun + steps}")
    except RuntimeError:
        assert die
    return made


def test_a_training_that_moves_from_node_to_node(server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a cluster without a shared file system cannot train, or starts over, or moves models through the flow's machine."""
    flow = store(server, tmp_path / "flow", monkeypatch)
    model = flow.build(MODEL, lambda out: (out / "weights").write_text("θ_0") and None)
    home = RunHome(server.url, str(flow.home))
    monkeypatch.setenv("SPINFLOW_CACHE", str(tmp_path / "a"))
    first = Disk(home)
    monkeypatch.setenv("SPINFLOW_CACHE", str(tmp_path / "b"))
    second = Disk(home)
    seen: list[Path] = []

    def write(out: Path) -> None:
        job = {"model": str(model.folder), "work": str(flow.work_dir(TRAINED, elsewhere=True)), "out": str(out)}
        run(first, job, 0, steps=3, die=True)
        for made in run(second, job, 0, steps=4):
            flow.receive(made.name, made.files)
        assert (out / "metrics.jsonl").read_text() == "7"
        assert not (out / "weights").exists(), "a large file does not come to the flow"
        seen.append(out)

    ref = flow.build(TRAINED, write)
    assert seen
    assert sorted(ref.manifest["files"]) == ["metrics.jsonl", "weights"]
    assert not ref.here
    assert (ref.path / "weights").stat().st_size == 2 * 2**20
    assert flow.works() == []
    for disk in (first, second):
        assert (disk.store.find("model", model.digest).folder / "weights").exists()
        disk.close()
        assert not [*(disk.store.home / "nodes").iterdir()]


def test_a_failed_child_sends_nothing(server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = store(server, tmp_path / "flow", monkeypatch)
    model = flow.build(MODEL, lambda out: (out / "weights").write_text("θ_0") and None)
    monkeypatch.setenv("SPINFLOW_CACHE", str(tmp_path / "a"))
    disk = Disk(RunHome(server.url, str(flow.home)))
    out = flow.home / ".staging" / TRAINED.name
    job = {"model": str(model.folder), "work": str(flow.home / "work" / TRAINED.name), "out": str(out)}
    assert run(disk, job, None, steps=1, die=True) == []
    assert not [entry for entry in disk.store.bucket.list("files") if TRAINED.digest in entry.name]  # type: ignore[union-attr]


def test_hosts_that_were_killed_leave_nothing(server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = store(server, tmp_path / "flow", monkeypatch)
    home = RunHome(server.url, str(flow.home))
    lost, alive = Disk(home), Disk(home)
    lost._lock.close()  # as the kernel does with the process
    Disk(home)
    folders = {folder.name for folder in (flow.home / "nodes").iterdir()}
    assert alive._folder.name in folders
    assert lost._folder.name not in folders


def test_only_a_launcher_whose_children_are_elsewhere_collects(server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = store(server, tmp_path / "flow", monkeypatch)
    file = flow.home / "work" / "reference-1" / "piece"
    assert flow.bucket is not None
    flow.bucket.put("shares/reference-1/piece", b"x")
    Launcher(flow).collect([file])
    assert not file.exists()
    flow.collect([file])
    assert file.read_text() == "x"


def test_a_ref_says_where_it_is(server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flow = store(server, tmp_path / "flow", monkeypatch)
    ref = flow.build(MODEL, lambda out: (out / "weights").write_text("θ_0") and None)
    assert ref.place == str(ref.folder)
    assert store(server, tmp_path / "b", monkeypatch).find("model", ref.digest).place.startswith("s3://")
    assert Ref("model", "x", tmp_path).place == str(tmp_path)
