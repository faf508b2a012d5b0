"""Servers that somebody else runs: three real vLLM servers on loopback, one of which goes away and comes back."""

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.session import SHARDS_IN_FLIGHT
from spin_core.contracts.tables import read_rows
from spin_core.encoding.ends import Ends
from spin_core.generation.client import Client
from spin_core.generation.engine import Prompt
from spin_core.generation.pool import EnginePool
from spin_core.generation.stage import shards
from spin_core.generation.vllm_server import engine_arguments
from spin_core.recipe import Recipe
from spin_core.runtime import output, process
from spin_core.runtime.errors import ChildCrash
from spin_core.store import Ref, Store
from tests.stages import encode, import_model, reformat, session_of

KEY = "not-for-logs"
LENGTH = 320
ENDS = Ends([2], ["<|im_end|>"], 2)
Servers = tuple[Store, Recipe, Ref, list["Server"]]


class Server:
    """A vLLM server as another team would start it."""

    def __init__(self, model: Ref, port: int, log: Path) -> None:
        self.model, self.port, self.log = model, port, log
        self.start()

    def start(self) -> None:
        """Lives as long as the thread that calls this."""
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model.path), "--port", str(self.port)]
        command += ["--host", "127.0.0.1", "--served-model-name", "ours", self.model.digest, *engine_arguments(LENGTH, ())]
        env = {"VLLM_API_KEY": KEY, "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        self.child = process.spawn(command, self.log, env | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"})

    def kill(self) -> None:
        for pid in [self.child.pid, *process.descendants(self.child.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.child.wait()

    def wait_until_up(self) -> None:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert self.child.poll() is None, output.last_words(self.log)
            with suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return
            time.sleep(0.5)
        raise AssertionError("the server did not start")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def answered(self) -> int:
        """Requests that it answered since it started."""
        text = httpx.get(f"{self.url}/metrics", timeout=10).text
        return int(sum(float(n) for n in re.findall(r"^vllm:request_success_total\{.*?\} ([\d.e+]+)$", text, re.MULTILINE)))


@pytest.fixture
def servers(tmp_path: Path, tiny_model: Path) -> Iterator[Servers]:
    store = Store(tmp_path / "home")
    ports = [free_port() for _ in range(3)]
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "model": {"name": str(tiny_model)},
            "data": {"name": "demo", "subset": 372, "test_size": 60, "max_prompt_tokens": 256},
            "generation": {
                "engine": "endpoint",
                "endpoints": [f"http://127.0.0.1:{ports[0]}/v1", *(f"http://127.0.0.1:{port}" for port in ports[1:])],
                "api_key_env": "TEST_ENDPOINT_KEY",
                "max_new_tokens": 64,
                "shard_rows": 4,
            },
        }
    )
    model = import_model(store, recipe.model)
    found = [Server(model, port, tmp_path / f"server-{port}.log") for port in ports]
    try:
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(Server.wait_until_up, found))
        yield store, recipe, model, found
    finally:
        process.end(*(server.child for server in found))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.long
@pytest.mark.engine
def test_one_of_three_servers_goes_away_and_comes_back(servers: Servers, prefect_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others finish its work, no row is lost or doubled, and it is used again. One test, because the servers take a minute to start."""
    store, recipe, model, (first, *others) = servers
    check_what_a_server_answers(first, recipe)
    monkeypatch.setenv("TEST_ENDPOINT_KEY", KEY)
    prompts = reformat(store, recipe.data)
    pool = EnginePool(store)
    alone: list[int] = []

    def go_away() -> None:
        while len(list((store.home / "artifacts").glob("shard/*/MANIFEST.json"))) < 3:
            time.sleep(0.05)
        first.kill()
        alone.extend(server.answered() for server in others)

    @flow(task_runner=ThreadPoolTaskRunner(max_workers=SHARDS_IN_FLIGHT), persist_result=False)
    def sample() -> tuple[tuple[Ref, ...], tuple[Ref, ...]]:
        run = session_of(store, recipe, pool)
        encoded = encode(store, recipe, model, prompts)
        leaving = threading.Thread(target=go_away)
        leaving.start()
        train = run.sample("train_shards", shards(recipe, model, encoded, "train", "iter-0"))
        leaving.join()
        assert first.child.poll() is not None
        assert all(server.answered() > before for server, before in zip(others, alone, strict=True))
        first.start()
        first.wait_until_up()
        deadline = time.monotonic() + 60
        while not all(seat.engine for seat in pool._seats) and time.monotonic() < deadline:
            time.sleep(0.2)
        return train, run.sample("test_shards", shards(recipe, model, encoded, "test", "iter-0"))

    with pool:
        train, test = sample()
    assert first.answered() > 0, "it came back, and was not used again"
    for refs, count in ((train, 312), (test, 60)):
        rows = [row for ref in refs for row in read_rows(ref.path / "shard.parquet")]
        assert len({row["row_id"] for row in rows}) == len(rows) == count
        assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    written = [p for p in store.home.rglob("*") if p.is_file() and p.suffix in {".json", ".log"}]
    assert not any(KEY in p.read_text(errors="replace") for p in written), "the key was written to disk"


def check_what_a_server_answers(server: Server, recipe: Recipe) -> None:
    """A row that the server refuses is recorded with its reason; a server that refuses us is not used."""
    client = Client(server.url, "ours", recipe.generation, KEY)
    fine, too_long = client.sample([Prompt([5, 6, 7], 0), Prompt([5] * (LENGTH + 1), 0)], ENDS, lambda done, tokens: None)
    assert fine.finish_reason in {"stop", "length"}
    assert 0 < len(fine.ids) <= 64
    assert too_long.ids == []
    assert too_long.finish_reason.startswith("error: ")
    assert "maximum" in too_long.finish_reason
    assert server.model.digest in client.served()
    for model, key in (("ours", "wrong"), ("another", KEY)):
        with pytest.raises(ChildCrash, match=r"answered 40[14]"):
            Client(server.url, model, recipe.generation, key).sample([Prompt([5], 0)], ENDS, lambda done, tokens: None)
    assert Client(server.url, "ours", recipe.generation, "wrong").served() == []
