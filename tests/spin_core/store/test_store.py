"""The store's promises: whole or not at all, found by content, verified."""

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


def test_links_follow_the_newest_artifact(tmp_path: Path) -> None:
    """A table that mixes the iterations of two chains would be read as one."""
    store = Store(tmp_path)
    ref = store.build(SPEC, write_file)
    other = store.build(Spec("thing", 2, {}), write_file)
    folder = tmp_path / "campaigns" / "c"
    assert [store.link("c", t, {"thing": ref}) for t in (0, 0, 1)] == [False, False, False]
    assert store.link("c", 0, {"thing": other})
    store.unlink_after("c", 0)
    assert (folder / "iter-0" / "thing").resolve() == other.path
    assert sorted(p.name for p in folder.rglob("*")) == ["iter-0", "thing"]
    assert ref.path.is_dir()


def test_a_campaign_is_one_runs_at_a_time(tmp_path: Path) -> None:
    """Two runs at once would train twice and race for the links; a dead run must not hold the others up."""
    store = Store(tmp_path)
    code = """
import sys, time, pathlib, spin_core.store.artifacts
with spin_core.store.artifacts.Store(pathlib.Path(sys.argv[1])).campaign_lock("c", print):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    told = []

    def waiting(done: bool) -> None:
        told.append(done)
        holder.kill()

    with store.campaign_lock("c", waiting), store.campaign_lock("other", waiting):
        assert told == [False, True]
    holder.wait()


def test_each_run_has_a_log_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = store.open_run_logs("c"), store.open_run_logs("c")
    assert first != second
    assert store.log_path("engine").parent == second == (tmp_path / "logs" / "latest").resolve()
