"""Fixtures that several rooms use, and a core for each of the workers that share them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import make_model


def pytest_configure(config: pytest.Config) -> None:
    """A worker and its children stay on a core of their own: tiny models gain nothing from threads, which would wait for each other."""
    worker, cores = os.environ.get("PYTEST_XDIST_WORKER", ""), sorted(os.sched_getaffinity(0))
    if worker:
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that from_pretrained loads."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    make_model(folder)
    return folder


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A Prefect server on a fresh database, for tests that run flows in their own process."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield
