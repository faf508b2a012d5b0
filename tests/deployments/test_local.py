"""`make up` and `make down` on a bare machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deployments.conftest import ROOT, free_port

SETTINGS = ROOT / "prefect.toml"


def local(home: Path, *arguments: str) -> str:
    command = [sys.executable, "deployments/local.py", *arguments, "--home", str(home)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.long
@pytest.mark.farm
def test_up_and_down(tmp_path: Path) -> None:
    """The first thing that a user of the UI types; what it leaves behind, they have to find and kill by hand."""
    if SETTINGS.exists():
        pytest.skip("`make up` is in use here")
    port = str(free_port())
    try:
        assert "spin-iteration/nightly" in local(tmp_path, "up", "--port", port)
        pids = [int((tmp_path / "server" / f"{role}.pid").read_text().split()[0]) for role in ("server", "worker")]
        local(tmp_path, "up", "--port", port)
        assert local(tmp_path, "status") == f"worker: up, process {pids[1]}\nserver: up, process {pids[0]}\n"
        # no PREFECT_API_URL: prefect.toml leads there
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        listed = subprocess.run(
            [sys.executable, "-m", "prefect", "deployment", "ls"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )
        assert "spin-campaign/default" in listed.stdout
    finally:
        ended = local(tmp_path, "down")
    assert ended == "worker: ended\nserver: ended\n"
    assert not SETTINGS.exists()
    assert not any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)
    assert local(tmp_path, "status") == "worker: down\nserver: down\n"
