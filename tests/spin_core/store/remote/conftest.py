"""A server for all tests of this room; each has a home of its own in it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from spin_core.store import Store
from tests.s3 import S3, s3

Machine = Callable[[str], Store]


@pytest.fixture(scope="session")
def one_server() -> Iterator[S3]:
    with s3() as server:
        yield server


@pytest.fixture
def server(one_server: S3) -> Iterator[S3]:
    one_server.reset()
    one_server.failed.clear()
    yield one_server
    one_server.fault = lambda method, name: ""


@pytest.fixture
def machine(server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A store of one home, as a machine of that name sees it: each has a disk of its own."""
    url = f"{server.url}/{uuid4().hex[:8]}"

    def of(name: str) -> Store:
        monkeypatch.setenv("SPINFLOW_CACHE", str(tmp_path / name))
        return Store(url)

    return of
