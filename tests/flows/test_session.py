"""Sampling a split in the real Prefect, with an engine that fails where it is told to."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

import flows.session
from spin_core.contracts.tables import read_rows
from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Answer, OnAnswer, Prompt
from spin_core.generation.pool import EnginePool
from spin_core.generation.stage import shards
from spin_core.recipe import Recipe
from spin_core.report.results import played_turns
from spin_core.runtime.errors import ChildCrash, SpinflowError
from spin_core.runtime.progress import Progress, listen
from spin_core.store import Ref, Store
from tests.campaigns import Made
from tests.stages import session_of
from tests.tiny import make_encoded

ROOT = Path(__file__).parents[2]


class Fussy:
    """Crashes on some first rows, refuses some others."""

    address, node, where = None, "", ""
    window = 100

    def __init__(self, crash_on: set[int], refuse: set[int]) -> None:
        self.crash_on, self.refuse = crash_on, refuse
        self.calls: list[int] = []

    def alive(self) -> bool:
        return True

    def sample(self, prompts: Sequence[Prompt], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        self.calls.append(prompts[0].ids[0])
        if prompts[0].ids[0] in self.crash_on:
            raise ChildCrash("out of luck", exit_code=-9)
        return [Answer([], "error: no", "") if prompt.ids[0] in self.refuse else Answer([2], "stop", "") for prompt in prompts]

    def close(self) -> None:
        pass


def test_a_shard_without_luck_does_not_stop_the_others(tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named, and the next run does only it. A refused row is recorded and harms nobody."""
    store = Store(tmp_path)
    generation = {"shard_rows": 1}
    recipe = Recipe.model_validate({"name": "c", "model": {"name": "m"}, "data": {"name": "demo"}, "generation": generation})
    model, encoded = make_encoded(store, 6)
    quick = flows.session.build.with_options(retry_delay_seconds=0, retry_jitter_factor=0)
    monkeypatch.setattr(flows.session, "build", quick)
    engine = Fussy(crash_on={5}, refuse={7})
    pool = EnginePool(store)
    monkeypatch.setattr(pool, "_starts", lambda model: [lambda ended: engine])

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=4), persist_result=False)
    def stage() -> list[Ref]:
        return list(session_of(store, recipe, pool).sample("train_shards", shards(recipe, model, encoded, "train", "iter-0")))

    with pool:
        with pytest.raises(SpinflowError, match=r"iter-0: train shards 2 of 6 failed: out of luck; run again, only those are redone"):
            stage()
        assert engine.calls.count(5) == 4  # three retries
        assert sorted(set(engine.calls)) == [3, 4, 5, 6, 7, 8]
        engine.calls.clear()
        engine.crash_on.clear()
        refs = stage()
    assert engine.calls == [5]
    rows = [row for ref in refs for row in read_rows(ref.path / "shard.parquet")]
    assert [row["row_id"] for row in rows] == [f"{number:016x}" for number in range(6)]
    assert [row["finish_reason"] for row in rows] == ["stop"] * 4 + ["error: no", "stop"]


def test_a_page_that_cannot_be_made_costs_nobody_their_model(tmp_path: Path, prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake in the page would end every run of a campaign at the same place, after hours of training."""
    made, heard = Made(Store(tmp_path), 8, 1), list[Progress]()
    (played_turns(made.store, made.recipe)[0].ref("evaluation").path / "samples.parquet").unlink()

    @flow(persist_result=False)
    def stage() -> str:
        session_of(made.store, made.recipe, EnginePool(made.store)).show(0)
        return "the best model"

    end = listen(heard.append)
    assert stage() == "the best model"
    end()
    assert [event.name for event in heard] == ["iter-0 · report"]
    assert "samples.parquet" in heard[0].note


def test_a_session_guards_its_process(tmp_path: Path) -> None:
    """A worker's flow run has no command line that did: SIGKILLed, it would leave an engine that holds the device."""
    code = (
        "import subprocess, time; from flows.session import session; from spin_core.runtime.errors import BadInput\n"
        "try:\n    with session('none.yaml', None, None): pass\nexcept BadInput: pass\n"
        "print(subprocess.Popen(['sleep', '60'], start_new_session=True).pid, flush=True); time.sleep(60)"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert run.stdout is not None
    child = int(run.stdout.readline())
    assert runs(child)
    run.kill()
    run.wait()
    deadline = time.monotonic() + 20
    while runs(child):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False
