"""Fixtures that several rooms use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny import make_model


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
