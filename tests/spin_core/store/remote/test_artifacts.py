"""A home in an object store: whole or not at all, found by every machine, verified, and nothing moved twice."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from spin_core.runtime.errors import BadInput, Corrupt
from spin_core.store import MANIFEST, Spec, Store
from spin_core.store.remote import moving
from tests.s3 import S3
from tests.spin_core.store.remote.conftest import Machine

SPEC = Spec("thing", 1, {"a": 1})


def write(staging: Path) -> dict[str, int]:
    (staging / "data.txt").write_text("hello")
    (staging / "deep").mkdir()
    (staging / "deep" / "empty").touch()
    return {"rows": 1}


def never(_: Path) -> None:
    pytest.fail("the stage ran twice")


def test_a_machine_with_an_empty_disk_finds_what_another_made(machine: Machine) -> None:
    """If it fails, a worker that comes new to a campaign plays it again."""
    first = machine("a").build(SPEC, write)
    store = machine("b")
    ref = store.build(SPEC, never)
    assert ref == store.find(first.kind, first.digest)
    assert not ref.here
    assert ref.facts["rows"] == 1
    assert not ref.here, "to look at a manifest moves no files"
    assert (ref.path / "data.txt").read_text() == "hello"
    assert (ref.path / "deep" / "empty").read_bytes() == b""
    assert ref.here
    assert abs(ref.made - first.made) < 2


def test_what_is_asked_of_the_store(machine: Machine, server: S3) -> None:
    """Requests are paid for, and there are thousands of shards: each one more counts."""
    store = machine("a")
    ref = store.build(SPEC, write)
    found = dict(server.requests)
    assert found == {
        "LIST manifests": 1,
        "GET manifests": 2,  # before the claim is asked for, and once it is held
        "PUT sessions": 1,
        "PUT claims": 1,
        "PUT files": 2,
        "PUT manifests": 1,
        "POST ": 2,  # claim and session are removed
    }
    server.reset()
    assert store.build(SPEC, never).path == ref.path
    assert not server.requests, "what is here is not asked for"
    other = machine("b")
    found_there = other.build(SPEC, never)
    assert [found_there.path for _ in range(3)]
    assert sum(server.requests.values()) == 3, server.requests  # listing, manifest, the file that is not empty
    assert server.received < 3000


@pytest.mark.parametrize("harm", ["flip", "remove"])
def test_what_is_damaged_in_the_store_is_set_aside_and_made_again(machine: Machine, harm: str) -> None:
    ref = machine("a").build(SPEC, write)
    store = machine("b")
    (part,) = [entry.name for entry in store.bucket.list("files") if entry.bytes]
    store.bucket.put(part, b"hellp") if harm == "flip" else store.bucket.delete([part])
    with pytest.raises(Corrupt, match="run again"):
        store.build(SPEC, never).path  # noqa: B018
    assert store.lookup(SPEC) is None
    assert (machine("b").build(SPEC, write).path / "data.txt").read_text() == "hello"
    assert (machine("c").find(ref.kind, ref.digest).path / "data.txt").read_text() == "hello"


def test_a_damaged_copy_comes_anew(machine: Machine) -> None:
    store = machine("a")
    ref = store.build(SPEC, write)
    (ref.folder / "data.txt").write_text("hellp")
    store.verify(ref)
    assert (ref.path / "data.txt").read_text() == "hello"


def test_large_files_go_in_parts_and_what_was_sent_is_not_sent_again(machine: Machine, server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model takes minutes; a connection that breaks must not cost what has arrived."""
    monkeypatch.setattr(moving, "PART", 1000)
    content = os.urandom(10_500)

    def large(staging: Path) -> None:
        (staging / "model").write_bytes(content)

    store, spec, puts = machine("a"), Spec("model", 1, {}), 0

    def broken(bucket: Any, name: str, data: bytes) -> Any:
        nonlocal puts
        puts += name.startswith("files/")
        if puts > 4:
            raise BadInput("refused")
        return put(bucket, name, data)

    put = type(store.bucket).put
    with monkeypatch.context() as patch:
        patch.setattr(type(store.bucket), "put", broken)
        with pytest.raises(BadInput):
            store.build(spec, large)
    server.reset()
    ref = machine("a").build(spec, large)
    assert server.requests["PUT files"] == 11 - 4
    assert ref.manifest["files"]["model"]["bytes"] == 10_500
    assert (machine("b").find("model", ref.digest).path / "model").read_bytes() == content


def test_a_fetch_that_broke_goes_on(machine: Machine, server: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moving, "PART", 1000)
    content = os.urandom(10_000)
    ref = machine("a").build(Spec("model", 1, {}), lambda out: (out / "model").write_bytes(content) and None)
    store = machine("b")
    there, gets = store.find("model", ref.digest), 0
    get = type(store.bucket).get

    def broken(bucket: Any, name: str) -> bytes | None:
        nonlocal gets
        gets += "files/" in name
        if gets > 5:
            raise BadInput("refused")
        return get(bucket, name)

    monkeypatch.setattr(type(store.bucket), "get", broken)
    with pytest.raises(BadInput):
        there.path  # noqa: B018
    assert not there.here
    monkeypatch.setattr(type(store.bucket), "get", get)
    server.reset()
    assert (machine("b").find("model", ref.digest).path / "model").read_bytes() == content
    assert server.requests["GET files"] < 10


def test_a_single_file_comes_alone(machine: Machine) -> None:
    """The page wants a training's curve, not its model."""
    ref = machine("a").build(SPEC, write)
    there = machine("b").find(ref.kind, ref.digest)
    assert there.file("data.txt").read_text() == "hello"
    assert not there.here


def test_two_machines_that_both_made_it_have_one_artifact(machine: Machine) -> None:
    """One was cut off and thought dead: whoever commits first is right, for both."""
    slow, fast = machine("slow"), machine("fast")

    def overtaken(staging: Path) -> None:
        (staging / "data.txt").write_text("slow")
        manifest = fast.shelf.send(SPEC.kind, SPEC.digest, made)  # as if its claim had been taken over
        text = json.dumps({"files": manifest, "facts": {}, "created": "2026-01-01T00:00:00Z"})
        assert fast.shelf.commit(SPEC.kind, SPEC.digest, text)

    made = fast.home / "made"
    made.mkdir(parents=True)
    (made / "data.txt").write_text("fast")
    ref = slow.build(SPEC, overtaken)
    assert (ref.path / "data.txt").read_text() == "fast"
    lost = [found for found in slow.shelf.leftovers()]
    assert [found.why for found in lost] == ["no manifest has it"]
    lost[0].remove()
    assert not [*slow.shelf.leftovers()]


def test_what_another_machine_removed_is_not_here_either(machine: Machine) -> None:
    """Else a campaign would go on from an artifact that no other machine can see."""
    ref = machine("a").build(SPEC, write)
    store = machine("b")
    assert store.find(ref.kind, ref.digest).path.is_dir()
    machine("a").remove(ref)
    again = machine("b")
    assert again.lookup(SPEC) is None
    assert not (again.find(ref.kind, ref.digest).folder / MANIFEST).exists()
    assert not [*machine("a").bucket.list("")]


def test_the_cache_stays_within_its_bound(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker's disk is smaller than a home."""
    from spin_core.store.remote import cache

    monkeypatch.setattr(cache, "_YOUNG_S", 0.0)
    store = machine("a")
    specs = [Spec("thing", 1, {"n": number}) for number in range(6)]
    for spec in specs:
        store.build(spec, lambda out: (out / "data").write_bytes(os.urandom(100_000)) and None)
    monkeypatch.setenv("SPINFLOW_CACHE_GB", "0.00035")
    other = machine("b")
    with other.kept([other.ref(specs[0])]):
        for spec in specs:
            assert (other.ref(spec).path / "data").stat().st_size == 100_000
        here = [number for number, spec in enumerate(specs) if other.ref(spec).here]
    assert 0 in here, "what is in use stays"
    assert len(here) == 3
    assert 5 in here
    assert (other.ref(specs[2]).path / "data").stat().st_size == 100_000


def test_many_threads_bring_one_artifact_once(machine: Machine, server: S3) -> None:
    """256 shards wait for one model."""
    ref = machine("a").build(SPEC, write)
    there, server.fault = machine("b").find(ref.kind, ref.digest), lambda method, name: ""
    server.reset()
    threads = [threading.Thread(target=lambda: there.path) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert there.here
    assert server.requests["GET files"] == 1


def test_a_slash_at_the_end_is_the_same_home(machine: Machine) -> None:
    store = machine("a")
    assert Store(f"{store.url}/").home == store.home


@pytest.mark.parametrize(
    ("url", "says"), [("s3://no-such-bucket-here/x", "bucket is not there"), ("ftp://x/y", "give a folder"), ("s3://", "give a folder")]
)
def test_a_home_that_cannot_be(url: str, says: str, server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPINFLOW_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match=says):
        Store(url).build(SPEC, write)
