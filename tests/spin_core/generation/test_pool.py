"""The pool's decisions, with engines that only keep count: who gets a shard, what happens when an engine dies or never starts."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from spin_core.encoding.ends import Ends
from spin_core.generation import pool as pool_module
from spin_core.generation.engine import Answer, Ended, OnAnswer, Prompt
from spin_core.generation.pool import EnginePool
from spin_core.runtime.errors import BadInput, Cancelled, ChildCrash, SpinflowError
from spin_core.store import Ref, Store

ENDS = Ends([1], ["</s>"], 1)
MODEL, OTHER = (Ref("model", name, Path("/nowhere")) for name in ("a", "b"))


class Counted:
    """An engine that answers at once, until it is told to die."""

    address, node, where = None, "", ""
    window = 10

    def __init__(self) -> None:
        self.dead = self.closed = False

    def alive(self) -> bool:
        return not self.dead and not self.closed

    def sample(self, prompts: Sequence[Prompt], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        if not self.alive():
            raise ChildCrash("gone", exit_code=-9)
        return [Answer([1], "stop", "") for _ in prompts]

    def close(self) -> None:
        self.closed = True


def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *starts: Callable[[Ended], Any]) -> EnginePool:
    monkeypatch.setattr(pool_module, "_BACK_OFF_S", (0.01, 0.02, 600.0))
    pool = EnginePool(Store(tmp_path))
    monkeypatch.setattr(pool, "_starts", lambda model: list(starts))
    return pool


def wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_shard_goes_to_the_engine_with_the_fewest_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one GPU works and the others idle."""
    engines = [Counted(), Counted()]
    with make(tmp_path, monkeypatch, lambda ended: engines[0], lambda ended: engines[1]) as pool:
        with pool.lease(MODEL, 1):
            wait_until(lambda: all(seat.engine for seat in pool._seats))
        with pool.lease(MODEL, 4) as first, pool.lease(MODEL, 6) as second, pool.lease(MODEL, 1) as third:
            assert {first, second} == set(engines)
            assert third is first


def test_an_engine_takes_no_more_shards_than_fill_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits in the pool can go to any engine, for example one that comes back; what waits in an engine cannot."""
    got = threading.Event()
    with make(tmp_path, monkeypatch, lambda ended: Counted()) as pool:

        def third() -> None:
            with pool.lease(MODEL, 6):
                got.set()

        waiting = threading.Thread(target=third)
        with pool.lease(MODEL, 6):
            with pool.lease(MODEL, 6):
                waiting.start()
                assert not got.wait(0.2)
            assert got.wait(5)
        waiting.join()


def test_a_dead_engine_is_replaced_and_the_shard_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Counted] = []

    def start(ended: Ended) -> Counted:
        started.append(Counted())
        return started[-1]

    with make(tmp_path, monkeypatch, start) as pool:
        with pytest.raises(ChildCrash), pool.lease(MODEL, 1) as engine:  # noqa: PT012
            started[0].dead = True
            engine.sample([Prompt([1], 0)], ENDS, lambda done, new: None)
        assert started[0].closed, "a dead engine's process tree may hold the memory"
        with pool.lease(MODEL, 1) as engine:
            assert engine is started[1]
        started[1].dead = True  # while it is idle: no shard's retry is spent on it
        with pool.lease(MODEL, 1) as engine:
            assert engine is started[2]


def test_a_dead_engine_has_ended_before_the_next_one_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds the GPU until then: the next one would wait for its own run, which is an error."""
    started: list[Counted] = []
    early: list[Counted] = []

    class Slow(Counted):
        def close(self) -> None:
            time.sleep(1.0)  # longer than a waiting shard looks away
            super().close()

    def start(ended: Ended) -> Counted:
        early.extend(engine for engine in started if not engine.closed)
        started.append(Slow())
        return started[-1]

    def another() -> None:
        with pool.lease(MODEL, 1):
            pass

    with make(tmp_path, monkeypatch, start) as pool:
        with pytest.raises(ChildCrash), pool.lease(MODEL, 1) as engine:  # noqa: PT012
            started[0].dead = True
            waiting = [threading.Thread(target=another) for _ in range(2)]  # one finds it dead, the other wants the next
            for thread in waiting:
                thread.start()
            engine.sample([Prompt([1], 0)], ENDS, lambda done, new: None)
        for thread in waiting:
            thread.join(5)
    assert len(started) == 2
    assert early == []


def test_the_others_work_while_one_is_away_and_it_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    away = threading.Event()
    stays, returns = Counted(), Counted()

    def flaky(ended: Ended) -> Counted:
        if away.is_set():
            raise ChildCrash("refused", exit_code=-1)
        returns.dead = returns.closed = False
        return returns

    with make(tmp_path, monkeypatch, lambda ended: stays, flaky) as pool:
        with pool.lease(MODEL, 1):
            wait_until(lambda: all(seat.engine for seat in pool._seats))
        away.set()
        returns.dead = True
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            with pool.lease(MODEL, 1) as one, pool.lease(MODEL, 1) as two:
                assert (one, two) == (stays, stays)
        assert pool._seats[1].given_up
        away.clear()
        pool._seats[1].due = 0.0  # its long pause is over

        def back() -> bool:
            with pool.lease(MODEL, 1), pool.lease(MODEL, 1) as two:
                return two is returns

        wait_until(back)


def test_an_engine_that_never_starts_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once a shard and retry: a thousand shards would each wait for the time limit."""
    tries = []

    def broken(ended: Ended) -> Counted:
        tries.append(1)
        raise ChildCrash("out of luck", exit_code=1)

    with make(tmp_path, monkeypatch, broken) as pool:
        for _ in range(3):
            with pytest.raises(SpinflowError, match="no engine after 3 tries: out of luck") as caught, pool.lease(MODEL, 1):
                pass
            assert not isinstance(caught.value, ChildCrash)  # a task would retry it
    assert len(tries) == 3


def test_an_engine_that_dies_before_any_work_is_not_restarted_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def frail(ended: Ended) -> Counted:
        engine = Counted()
        engine.dead = True
        return engine

    with make(tmp_path, monkeypatch, frail) as pool, pytest.raises(SpinflowError, match="no engine after 3 tries"), pool.lease(MODEL, 1):
        pass


def test_bad_input_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def wrong(ended: Ended) -> Counted:
        tries.append(1)
        raise BadInput("no such GPU")

    with make(tmp_path, monkeypatch, wrong) as pool, pytest.raises(BadInput, match="no such GPU"), pool.lease(MODEL, 1):
        pass
    assert len(tries) == 1


def test_another_model_ends_the_engines_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models at once do not fit into the memory."""
    started: list[Counted] = []

    def start(ended: Ended) -> Counted:
        assert all(engine.closed for engine in started)
        started.append(Counted())
        return started[-1]

    with make(tmp_path, monkeypatch, start) as pool:
        for model in (MODEL, MODEL, OTHER, MODEL):
            with pool.lease(model, 1):
                pass
    assert len(started) == 3
    assert all(engine.closed for engine in started)


def test_stop_is_calm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cancelled run: whoever waits for an engine, starts one or loses one is told that the run was ended; nothing is retried."""
    starting = threading.Event()

    def slow(ended: Ended) -> Counted:
        starting.set()
        while not ended():
            time.sleep(0.01)
        raise Cancelled("the run was ended")

    pool = make(tmp_path, monkeypatch, lambda ended: Counted(), slow)
    seen: list[BaseException] = []

    def shard(rows: int) -> None:
        try:
            with pool.lease(MODEL, rows) as engine:
                while True:
                    engine.sample([Prompt([1], 0)], ENDS, lambda done, new: None)
                    time.sleep(0.01)
        except BaseException as error:
            seen.append(error)

    threads = [threading.Thread(target=shard, args=(10,)) for _ in range(3)]  # one works, two wait
    for thread in threads:
        thread.start()
    assert starting.wait(5)
    started = time.monotonic()
    pool.stop()
    for thread in threads:
        thread.join(5)
    assert time.monotonic() - started < 2
    assert [type(error) for error in seen] == [Cancelled] * 3


def test_a_slice_is_the_rows_of_the_plan(tmp_path: Path) -> None:
    """Across row groups of any size, a shard holds exactly its rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from spin_core.contracts.rows import ENCODED
    from spin_core.generation.stage import _read_slice

    rows = [{"row_id": str(number), "prompt_ids": [number], "real_ids": [2]} for number in range(23)]
    pq.write_table(pa.Table.from_pylist(rows, schema=ENCODED), tmp_path / "train.parquet", row_group_size=5)
    for start in range(0, 23, 4):
        found = _read_slice(tmp_path / "train.parquet", start, min(23, start + 4))
        assert [row["row_id"] for row in found] == [str(number) for number in range(start, min(23, start + 4))]


def test_a_reader_is_shared_until_the_file_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard would read a whole row group for its few rows; and a file that was made anew has other ones."""
    from spin_core.contracts.rows import ENCODED
    from spin_core.contracts.tables import RowReader, write_rows
    from spin_core.generation import stage

    opened = []
    monkeypatch.setattr(stage, "RowReader", lambda path, columns: opened.append(path) or RowReader(path, columns))
    path = tmp_path / "train.parquet"
    for first in (0, 100):
        path.unlink(missing_ok=True)
        write_rows(path, [{"row_id": str(first + number), "prompt_ids": [number], "real_ids": [2]} for number in range(4)], ENCODED)
        for start in (0, 2):
            assert [row["row_id"] for row in stage._read_slice(path, start, start + 2)] == [str(first + start), str(first + start + 1)]
    assert opened == [path, path]


def test_shards_that_wait_do_not_keep_each_other_awake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds wait: were each to look after the engines, or to wake for every shard that ends, the flow would do little else."""
    looks = 0
    with make(tmp_path, monkeypatch, lambda ended: Counted()) as pool:
        look = pool._start_what_is_due

        def counted() -> None:
            nonlocal looks
            looks += 1
            look()

        def shard() -> None:
            with pool.lease(MODEL, 2):
                time.sleep(0.01)

        threads = [threading.Thread(target=shard) for _ in range(40)]
        with pool.lease(MODEL, 10):
            monkeypatch.setattr(pool, "_start_what_is_due", counted)
            for thread in threads:
                thread.start()
            wait_until(lambda: looks >= len(threads))  # all have come
            time.sleep(1.2)
            assert len(threads) <= looks <= len(threads) + 4
        # room for five at once, of which one was told
        for thread in threads:
            thread.join(5)
        assert not any(thread.is_alive() for thread in threads)
        assert looks <= 4 * len(threads)


def test_another_looks_when_the_one_that_looked_has_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, a seat whose pause ends while shards wait stays empty."""
    down, second = threading.Event(), Counted()
    down.set()

    def flaky(ended: Ended) -> Counted:
        if down.is_set():
            raise ChildCrash("refused", exit_code=-1)
        return second

    got = []

    def shard(rows: int) -> None:
        with pool.lease(MODEL, rows) as engine:
            got.append(engine)
            time.sleep(1.5 if len(got) == 1 else 0)

    with make(tmp_path, monkeypatch, lambda ended: Counted(), flaky) as pool:
        with pool.lease(MODEL, 10):
            threads = [threading.Thread(target=shard, args=(10,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            wait_until(lambda: pool._seats[1].given_up)
        wait_until(lambda: len(got) == 1)
        down.clear()
        pool._seats[1].due = 0.0
        wait_until(lambda: len(got) == 3)  # both others, long before the first has ended
        for thread in threads:
            thread.join(5)
    assert got[1:] == [second, second]


def test_a_shard_that_waits_has_read_nothing(tmp_path: Path) -> None:
    """Each of hundreds would hold its prompts: gigabytes, of a run that has one engine."""
    from spin_core.generation.stage import shards
    from spin_core.recipe import Recipe
    from spin_core.runtime.launcher import Launcher

    class Nowhere:
        def lease(self, sampler: object, rows: int) -> None:
            raise Cancelled(f"no room for {rows}")

    recipe = Recipe.model_validate({"name": "b", "model": {"name": "m"}, "data": {"name": "demo"}})
    (shard,) = shards(recipe, MODEL, Ref("encoded", "a", tmp_path / "not there"), "train", "iter-0", total=3)
    with pytest.raises(Cancelled, match="no room for 3"):
        shard.run(tmp_path, Launcher(Store(tmp_path), "", Nowhere()))
