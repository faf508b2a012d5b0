"""The store's promises: whole or not at all, found by content, verified."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spin_core.runtime.errors import Corrupt
from spin_core.store import Ref, Spec, Store

SPEC = Spec("thing", 1, {"a": 1, "b": [1, 2]})


def write_file(staging: Path) -> dict[str, int]:
    (staging / "data.txt").write_text("hello")
    return {"rows": 1}


def test_built_once_then_found(tmp_path: Path) -> None:
    """A second run that did the work again would break "nothing redone"."""
    store = Store(tmp_path)
    first = store.build(SPEC, write_file)
    again = store.build(SPEC, lambda _: pytest.fail("the stage ran twice"))
    assert again == first
    assert first.facts["rows"] == 1


def test_a_failed_stage_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def half(staging: Path) -> None:
        (staging / "half.txt").write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.build(SPEC, half)
    assert store.lookup(SPEC) is None
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_corrupted_file_is_named_and_redone(tmp_path: Path, harm: str) -> None:
    store = Store(tmp_path)
    ref = store.build(SPEC, write_file)
    file = ref.path / "data.txt"
    {"flip": lambda: file.write_text("hellp"), "truncate": lambda: file.write_text("hell"), "remove": file.unlink}[harm]()
    with pytest.raises(Corrupt, match=r"data\.txt"):
        store.verify(ref)
    assert store.lookup(SPEC) is None
    store.verify(store.build(SPEC, write_file))


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=4))
def test_the_digest_is_that_of_the_content(params: dict[str, object]) -> None:
    """The order of keys must not make a new artifact; any changed value must."""
    spec = Spec("thing", 1, params)
    assert spec.digest == Spec("thing", 1, dict(reversed(params.items()))).digest
    assert spec.digest != Spec("thing", 2, params).digest
    assert spec.digest != Spec("thing", 1, {**params, "other-key": 1}).digest
    assert spec.digest != Spec("thing", 1, params, (Ref("parent", "0", Path("/")),)).digest


def test_one_builds_and_the_other_waits(tmp_path: Path) -> None:
    """Two campaigns that need one artifact would otherwise both train it, in one work folder."""
    code = """
import sys, time, pathlib
from spin_core.store import Spec, Store
def write(out):
    (out / "data.txt").write_text("theirs")
    print("building", flush=True)
    time.sleep(float(sys.argv[2]))
Store(pathlib.Path(sys.argv[1])).build(Spec("thing", 1, {"a": 1, "b": [1, 2]}), write, what="campaign other")
"""
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), "2"], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "building\n"
    told: list[str] = []
    ref = Store(tmp_path).build(SPEC, lambda _: pytest.fail("built twice"), told.append)
    assert told == [f"process {other.pid} (campaign other)", ""]
    assert (ref.path / "data.txt").read_text() == "theirs"
    assert other.wait() == 0
    assert not list((tmp_path / "locks").iterdir())


def test_a_dead_builder_is_cleaned_up_and_a_live_one_never(tmp_path: Path) -> None:
    """However long it computes: what is swept is what nobody holds."""
    code = """
import sys, time, pathlib
from spin_core.store import Spec, Store
def write(out):
    (out / "half.txt").write_text("half")
    print("building", flush=True)
    time.sleep(60)
Store(pathlib.Path(sys.argv[1])).build(Spec(sys.argv[2], 1, {}), write)
"""
    found = {}
    for kind in ("live", "dead"):
        found[kind] = subprocess.Popen([sys.executable, "-c", code, str(tmp_path), kind], stdout=subprocess.PIPE, text=True)
        stdout = found[kind].stdout
        assert stdout is not None
        assert stdout.readline() == "building\n"
    found["dead"].kill()
    found["dead"].wait()
    for staging in (tmp_path / ".staging").iterdir():
        os.utime(staging, (0, 0))
    Store(tmp_path).build(SPEC, write_file)
    assert [path.name.partition("-")[0] for path in (tmp_path / ".staging").iterdir()] == ["live"]
    found["live"].kill()
    found["live"].wait()
