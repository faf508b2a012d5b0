"""A judge's preferences: what it says, both orders, refusals, and servers that misbehave."""

import asyncio
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import numpy as np
import pytest

from spin_core.evaluation.duels import length_controlled
from spin_core.judging.duel_job import Judge, preference, won
from spin_core.runtime.errors import BadInput


def choice(text: str | None, **mass: float) -> dict[str, Any]:
    top = [{"token": token, "logprob": float(np.log(share))} for token, share in mass.items()]
    return {"message": {"content": text}, "logprobs": {"content": [{"top_logprobs": top}]} if top else None}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (choice("A", A=0.6, B=0.2), 0.75),
        (choice("B", **{"A": 0.1, " A": 0.1, "B": 0.6}), 0.25),
        (choice("A"), 1.0),
        (choice("**B**"), 0.0),
        (choice("B. It is shorter"), 0.0),
        (choice("Both are good"), None),
        (choice("Answer A"), None),  # its first letter is of another word
        (choice(None), None),
        (choice("I cannot", I=0.9), None),
    ],
)
def test_what_a_judge_says(said: dict[str, Any], expected: float | None) -> None:
    assert preference(said) == (None if expected is None else pytest.approx(expected))


def test_a_judge_that_always_says_a_prefers_nobody() -> None:
    assert won(1.0, 1.0) == 0.5
    assert won(0.8, 0.3) == pytest.approx(0.75)
    assert won(None, 0.3) == 0.7
    assert won(None, None) is None


def test_length_is_taken_out() -> None:
    """A judge that only looks at length prefers nobody at equal lengths; one that does not is believed."""
    dice = np.random.default_rng(0)
    longer_N = dice.normal(40.0, 60.0, 2000)
    by_length_N = 1.0 / (1.0 + np.exp(-3.0 * np.tanh(longer_N / longer_N.std())))
    assert by_length_N.mean() > 0.6
    assert length_controlled(by_length_N, longer_N) == pytest.approx(0.5, abs=0.01)
    assert length_controlled(np.full(2000, 0.7), longer_N) == pytest.approx(0.7, abs=0.01)
    assert length_controlled(np.ones(20), np.zeros(20)) > 0.95


class Server(ThreadingHTTPServer):
    """Answers with `replies` (status, text), one after the other, the last again and again."""

    replies: list[tuple[int, str]]
    keys: list[str | None]


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found: Any = self.server
            self.rfile.read(int(self.headers["Content-Length"]))
            found.keys.append(self.headers.get("Authorization"))
            status, text = found.replies.pop(0) if len(found.replies) > 1 else found.replies[0]
            body = json.dumps({"choices": [choice(text)], "usage": {"prompt_tokens": 7, "completion_tokens": 1}}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    found = Server(("127.0.0.1", 0), Handler)
    found.keys = []
    Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()


def judge(server: Server) -> Judge:
    return Judge({"url": f"http://127.0.0.1:{server.server_port}/v1", "model": "j", "concurrency": 1}, "secret")


def test_a_busy_server_is_asked_again_and_costs_are_counted(server: Server) -> None:
    server.replies = [(429, ""), (503, ""), (200, "A"), (200, "neither")]
    found = judge(server)
    assert asyncio.run(found.prefer([("q", "x", "y"), ("q", "y", "x")], "test")) == [1.0, None]
    assert found.counts == {"asked": 2, "refused": 1, "prompt_tokens": 14, "answer_tokens": 2}
    assert set(server.keys) == {"Bearer secret"}


def test_a_server_that_refuses_the_key_is_one_line(server: Server) -> None:
    server.replies = [(401, "no")]
    with pytest.raises(BadInput, match="answered 401"):
        asyncio.run(judge(server).prefer([("q", "x", "y")], "test"))
