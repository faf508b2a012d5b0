"""Scoring in shards, through its real children on a tiny model, on one device and on two that are not there."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from spin_core.contracts.rows import TEST_FILE, TRAIN_FILE
from spin_core.recipe import ModelSettings
from spin_core.runtime import devices, process, progress
from spin_core.runtime.errors import ChildCrash
from spin_core.runtime.launcher import Launcher
from spin_core.scoring import stage
from spin_core.scoring.scores import read_scores
from spin_core.scoring.stage import Score
from spin_core.store import Ref, Store
from tests.spin_core.training.test_training import make_pairs, recipe_for
from tests.stages import import_model

SHARD, SHARDS = 8, 12


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Ref, Ref, list[pa.Table]]:
    """A model, pairs whose shards take a while, and their scores in one piece."""
    store = Store(tmp_path_factory.mktemp("home"))
    model, lengths = import_model(store, ModelSettings(name=str(tiny_model))), (100, 300)
    pairs = make_pairs(store, SHARD * SHARDS, prompt=lengths, real=lengths, generated=lengths)
    return model, pairs, scores_of(Launcher(store).build(stage_of(model, pairs)), pairs)


def stage_of(model: Ref, pairs: Ref) -> Score:
    return Score(recipe_for(model.path, precision="fp32").training, model, pairs)


def scores_of(reference: Ref, pairs: Ref) -> list[pa.Table]:
    files = {"scores.parquet": TRAIN_FILE, "test_scores.parquet": TEST_FILE}
    return [read_scores(reference.path / name, pairs.path / file) for name, file in files.items()]


def check(found: list[pa.Table], whole: list[pa.Table]) -> None:
    for one, other in zip(found, whole, strict=True):
        for name in one.column_names:
            assert one[name].to_numpy() == pytest.approx(other[name].to_numpy(), abs=1e-3)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "SHARD_PAIRS", SHARD)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hold = devices._try_to_hold
    monkeypatch.setattr(devices, "_try_to_hold", lambda group, folder: hold(group, tmp_path / "locks"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "none-0,none-1")


def finished(home: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in home.glob("work/*/*.parquet")}


@contextmanager
def once(wanted: Callable[[], bool], act: Callable[[list[int]], None]) -> Iterator[None]:
    """Calls `act` with the pids of the children as soon as `wanted` holds."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            if wanted():
                act([child.pid for child in process.live()])
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def kill(pids: list[int]) -> None:
    os.kill(pids[-1], signal.SIGKILL)


def test_a_killed_scorer_goes_on_with_the_next_shard(
    world: tuple[Ref, Ref, list[pa.Table]], small_shards: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash costs a shard: hours of scoring at 7B would be lost otherwise."""
    model, pairs, whole = world
    launcher = Launcher(Store(tmp_path))
    with once(lambda: len(finished(tmp_path)) >= 2, kill), pytest.raises(ChildCrash, match="-9"):
        launcher.build(stage_of(model, pairs))
    kept = finished(tmp_path)
    assert 2 <= len(kept) < SHARDS
    events: list[progress.Progress] = []
    joined: dict[str, int] = {}
    join = stage.join_shards
    monkeypatch.setattr(stage, "join_shards", lambda shards, target: (joined.update(finished(tmp_path)), join(shards, target)))
    end = progress.listen(events.append)
    reference = launcher.build(stage_of(model, pairs))
    end()
    assert joined.items() >= kept.items(), "what was scored is scored again"
    shown = [event.done for event in events if event.unit == "pairs"]
    assert (shown[0], shown[-1]) == (SHARD * len(kept), SHARD * SHARDS + 3)
    check(scores_of(reference, pairs), whole)
    assert not list(tmp_path.glob("work/*"))


def test_every_device_scores(world: tuple[Ref, Ref, list[pa.Table]], small_shards: None, two_gpus: None, tmp_path: Path) -> None:
    """Each holds its own GPU and takes shards as it gets on; the scores are those of one device."""
    model, pairs, whole = world
    saw: dict[str, int] = {}

    def look(pids: list[int]) -> None:
        for pid in pids:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            saw.update({v.decode(): pid for v in variables if v.startswith(b"CUDA_VISIBLE_DEVICES=")})

    done: dict[int, float] = {}
    end = progress.listen(lambda event: done.update({event.part: event.done}) if event.unit == "pairs" else None)
    with once(lambda: len(process.live()) == 2 and bool(finished(tmp_path)), look):
        reference = Launcher(Store(tmp_path)).build(stage_of(model, pairs))
    end()
    assert sorted(saw) == ["CUDA_VISIBLE_DEVICES=none-0", "CUDA_VISIBLE_DEVICES=none-1"]
    assert len(set(saw.values())) == 2
    assert sum(done.values()) == SHARD * SHARDS + 3
    check(scores_of(reference, pairs), whole)
    assert reference.facts["pairs_per_s"] > 0


@pytest.mark.long
def test_what_a_crashed_device_left_is_taken_over(
    world: tuple[Ref, Ref, list[pa.Table]], small_shards: None, two_gpus: None, tmp_path: Path
) -> None:
    """The crash is told, so that the task's retry looks for what is missing; meanwhile the other device has gone on."""
    model, pairs, whole = world
    launcher = Launcher(Store(tmp_path))
    with once(lambda: len(process.live()) == 2 and bool(finished(tmp_path)), kill), pytest.raises(ChildCrash, match="-9"):
        launcher.build(stage_of(model, pairs))
    assert len(finished(tmp_path)) >= SHARDS  # of the shards with those held out, all or all but the one that was cut short
    check(scores_of(launcher.build(stage_of(model, pairs)), pairs), whole)
