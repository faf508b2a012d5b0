"""What the flow costs: 1,000 shards of an engine that does nothing, then the same stage again when all of it is done.

    python -m bench.orchestration [--shards 1000]

Both runs are processes of their own with Prefect's own server on a fresh database, as `spinflow run` has it. The engine answers
every row at once, so what is left is planning, Prefect's tasks and their events, reading rows, writing and committing shards.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.facts import facts
from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Answer, OnAnswer, Prompt

_ROWS_A_SHARD = 8
_MARK = "@result "


class NoOp:
    """Answers every row with one token."""

    address, node, where = None, "", ""
    window = 10**9

    def alive(self) -> bool:
        return True

    def sample(self, prompts: Sequence[Prompt], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        for number, _ in enumerate(prompts, 1):
            on_answer(number, 1)
        return [Answer([2], "stop", "")] * len(prompts)

    def close(self) -> None:
        pass


def child(home: Path, shards: int) -> None:
    """One run of the stage in a flow; prints its seconds."""
    from prefect import flow
    from prefect.task_runners import ThreadPoolTaskRunner

    from flows.session import SHARDS_IN_FLIGHT
    from spin_core.generation import stage as shards_module
    from spin_core.generation.pool import EnginePool
    from spin_core.generation.stage import shards as cut
    from spin_core.recipe import Recipe
    from spin_core.store import Store
    from tests.stages import session_of
    from tests.tiny import make_encoded

    for logger in (logging.getLogger(), logging.getLogger("prefect")):
        logger.handlers.clear()  # `spinflow run` sends them to a file
    store = Store(home)
    settings = {"generation": {"shard_rows": _ROWS_A_SHARD}}
    recipe = Recipe.model_validate({"name": "bench", "model": {"name": "none"}, "data": {"name": "demo"}, **settings})
    model, encoded = make_encoded(store, shards * _ROWS_A_SHARD)
    shards_module.encode = lambda *_: encoded  # the prompts are tokenised already
    pool = EnginePool(store)
    pool._starts = lambda _: [lambda ended: NoOp()]  # type: ignore[method-assign]

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=SHARDS_IN_FLIGHT), persist_result=False)
    def stage() -> float:
        started = time.perf_counter()
        refs = session_of(store, recipe, pool).sample("train_shards", cut(recipe, model, encoded, "train", "bench"))
        assert len({ref.digest for ref in refs}) == shards
        return time.perf_counter() - started

    with pool:
        seconds = stage()
    print(_MARK + json.dumps(seconds), flush=True)


def run(home: Path, shards: int, prefect: Path) -> tuple[float, float]:
    """Seconds of the stage and of the whole process."""
    settings = {
        "PREFECT_HOME": str(prefect),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    }
    started = time.perf_counter()
    command = [sys.executable, "-m", "bench.orchestration", "--shards", str(shards), "--child", str(home)]
    done = subprocess.run(command, env=os.environ | settings, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith(_MARK))
    return json.loads(line[len(_MARK) :]), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.shards)
        return
    with tempfile.TemporaryDirectory(prefix="bench-orchestration-") as folder:
        home, prefect = Path(folder) / "home", Path(folder) / "prefect"
        run(Path(folder) / "warm-up", 2, prefect)  # makes the database
        added, added_process = run(home, options.shards, prefect)
        print(f"{options.shards:,} shards of an engine that does nothing: {added:.1f} s in the stage, {added_process:.1f} s the whole run")
        resume, resume_process = run(home, options.shards, prefect)
        print(f"the finished stage again: {resume:.1f} s in the stage, {resume_process:.1f} s the whole run")
    result = {
        **facts("orchestration", "prefect", "pyarrow"),
        "shards": options.shards,
        "added_seconds": round(added, 2),
        "resume_seconds": round(resume, 2),
        "whole_run_seconds": {"added": round(added_process, 2), "resume": round(resume_process, 2)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
