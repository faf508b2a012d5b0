"""The client against a server that keeps its connections and says nothing."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from spin_core.encoding.ends import Ends
from spin_core.generation import client as client_module
from spin_core.generation.client import Client
from spin_core.generation.engine import Prompt
from spin_core.recipe import GenerationSettings
from spin_core.runtime.errors import ChildCrash

ENDS = Ends(list(range(100)), [], 2)  # every answer of the engine below is one of them


class Engine(BaseHTTPRequestHandler):
    """Answers its health at once, and a prompt after as many tenths of a second as its first token says; 99 is for ever."""

    protocol_version = "HTTP/1.1"
    ended = threading.Event()

    def do_GET(self) -> None:
        self.answer({"data": [{"id": "m"}]})

    def do_POST(self) -> None:
        first = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"][0]
        self.ended.wait(60 if first == 99 else first / 10)
        self.answer({"choices": [{"token_ids": [first], "finish_reason": "stop", "text": "t"}]})

    def answer(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    Engine.ended = threading.Event()
    with ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        Engine.ended.set()
        server.shutdown()


@pytest.fixture(autouse=True)
def one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_SILENCE_S", 1.0)
    monkeypatch.setattr(client_module, "_SILENCE_A_TOKEN_S", 0.0)


def ignore(done: int, tokens: int) -> None:
    pass


def test_an_engine_that_hangs_is_taken_for_dead(address: str) -> None:
    """Its server still says that it is healthy: the campaign would wait for ever, and hold the device."""
    client = Client(address, "m", GenerationSettings())
    assert client.healthy()
    started = time.monotonic()
    with pytest.raises(ChildCrash, match=r"has answered none of 2 requests for 1 s; run again to continue"):
        client.sample([Prompt([99], 0)] * 2, ENDS, ignore)
    assert 1.0 < time.monotonic() - started < 10.0
    assert not client.healthy()  # so the pool ends it, and starts another


def test_an_engine_that_is_slow_is_not(address: str) -> None:
    """A shard may take as long as it likes, while answers come, to whichever shard."""
    client = Client(address, "m", GenerationSettings())
    prompts = [[tenths] for tenths in (4, 8, 12, 16, 20, 24)]
    assert [answer.ids for answer in client.sample([Prompt(ids, 0) for ids in prompts], ENDS, ignore)] == prompts
    time.sleep(1.2)  # the pause between two shards is no silence
    assert client.sample([Prompt([5], 0)], ENDS, ignore)[0].ids == [5]
    assert client.healthy()


def test_shards_that_share_a_hung_engine_are_all_told(address: str) -> None:
    client = Client(address, "m", GenerationSettings())
    seen: list[BaseException] = []

    def shard(prompt: int) -> None:
        try:
            client.sample([Prompt([prompt], 0)], ENDS, ignore)
        except BaseException as error:
            seen.append(error)

    threads = [threading.Thread(target=shard, args=(prompt,)) for prompt in (99, 99, 99)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert [type(error) for error in seen] == [ChildCrash] * 3


def test_the_bound_grows_with_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert Client("http://127.0.0.1:9", "m", GenerationSettings(max_new_tokens=256))._patience_s == 600 + 5 * 256
