"""Conditional writes whose answers are lost: each is done once, and whoever did it knows."""

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import count

import pytest

from spin_core.runtime.errors import BadInput, Unreachable
from spin_core.store.remote import bucket as rules
from spin_core.store.remote.bucket import Bucket
from tests.s3 import S3
from tests.spin_core.store.remote.conftest import Machine

FAULTS = ["500", "503", "lost", "lost answer"]


@pytest.fixture
def bucket(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    monkeypatch.setattr(rules, "_PAUSE_S", 0.1)
    found = machine("a").bucket
    assert found is not None
    return found


def fail(server: S3, fault: str, method: str, times: int = 1) -> None:
    """The next so many requests of a method fail."""
    left: Iterator[int] = count()
    server.fault = lambda what, name: fault if what == method and next(left) < times else ""


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_written_once(bucket: Bucket, server: S3, fault: str) -> None:
    """If it fails, two runs hold one claim, or nobody does; a ledger's entry is lost, or a run thinks so."""
    fail(server, fault, "PUT")
    first = bucket.create("a", b"1")
    assert first is not None
    assert bucket.create("a", b"2") is None
    assert server.failed[fault]
    fail(server, fault, "PUT")
    second = bucket.replace("a", b"3", first)
    assert second is not None
    assert bucket.replace("a", b"4", first) is None
    assert bucket.get("a") == b"3"


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_be_repeated(bucket: Bucket, server: S3, fault: str) -> None:
    fail(server, fault, "PUT", 2)
    bucket.put("b/c", b"1")
    fail(server, fault, "GET", 2)
    assert bucket.get("b/c") == b"1"
    fail(server, fault, "LIST", 2)
    assert [(entry.name, entry.bytes) for entry in bucket.list("b")] == [("b/c", 1)]
    fail(server, fault, "POST", 1)
    bucket.delete(["b/c", "b/never-there"])
    assert bucket.get("b/c") is None
    assert server.failed[fault] >= 7


def test_a_store_that_stays_away_is_told_in_one_line(machine: Machine, server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "_TRIED", timedelta(seconds=2))
    monkeypatch.setattr(rules, "_AT_FIRST", timedelta(seconds=1))
    bucket = machine("b").bucket
    assert bucket is not None
    server.fault = lambda method, name: "503"
    for ask in (lambda: bucket.get("a"), lambda: bucket.put("a", b""), lambda: bucket.create("a", b""), lambda: [*bucket.list("a")]):
        with pytest.raises(Unreachable, match="run again to continue") as told:
            ask()
        assert "\n" not in str(told.value)


def test_a_store_that_says_nothing(machine: Machine, server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that is never answered ends by itself, and is asked again."""
    monkeypatch.setattr(rules, "_SILENCE", timedelta(seconds=1))
    monkeypatch.setattr(rules, "_REQUEST", timedelta(seconds=2))
    bucket = machine("b").bucket
    assert bucket is not None
    for method, ask in (
        ("PUT", lambda: bucket.put("a", b"1")),
        ("GET", lambda: bucket.get("a")),
        ("PUT", lambda: bucket.create("b", b"2")),
    ):
        fail(server, "hang", method)
        began = time.monotonic()
        assert ask()
        assert time.monotonic() - began < 5.0, "before the server has given up"
    assert server.failed["hang"] == 3
    assert bucket.create("b", b"3") is None


def test_a_store_that_is_away_for_a_while(bucket: Bucket, server: S3) -> None:
    """It is started anew, or a switch is: connections are refused at once, so tries must not be counted."""
    bucket.put("a", b"1")
    server.fault = lambda method, name: "lost"
    threading.Timer(12.0, lambda: setattr(server, "fault", lambda method, name: "")).start()
    began = time.monotonic()
    bucket.put("a", b"2")
    assert time.monotonic() - began > 10.0
    assert bucket.get("a") == b"2"


def test_keys_that_are_refused(bucket: Bucket, server: S3) -> None:
    server.fault = lambda method, name: "403"
    with pytest.raises(BadInput, match="access is refused"):
        bucket.get("a")
