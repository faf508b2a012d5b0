"""GPUs and memory: who holds what, with fake device names, a fake nvidia-smi, and real processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spin_core.runtime import devices, process
from spin_core.runtime.devices import Device
from spin_core.runtime.errors import BadInput, Cancelled, SpinflowError

ROOT = Path(__file__).parents[3]
SMI = """#!/bin/sh
echo "0, GPU-aaaa, 70000, 80000"
echo "1, GPU-bbbb, 100, 80000"
"""
HOLDER = """
import sys, time
from pathlib import Path
from spin_core.runtime import devices, process
held = devices.hold([devices.Device(n, n) for n in sys.argv[2:]], folder=Path(sys.argv[1]))
child = process.spawn(["sleep", "60"], Path(sys.argv[1]) / "log", fds=held.fds)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")


def test_a_gpu_is_known_by_its_uuid(smi: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One campaign may call it 1 and another GPU-bbbb: both must look at the same lock."""
    found = []
    for names in ("1", "GPU-bbbb", " 1 , -1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
        found += devices.visible()
    assert found == [Device("1", "GPU-bbbb", 100 * 2**20, 80000 * 2**20)] * 3
    assert devices.environment(found[:1])["CUDA_VISIBLE_DEVICES"] == "1"


def test_without_a_gpu_a_child_keeps_freed_memory() -> None:
    """The second 64 MB are the pages of the first: the kernel does not give them out, and zero them, anew."""
    code = """
import resource
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
found = [faults()]
for _ in range(2):
    bytearray(1 << 26)
    found.append(faults())
print(found[1] - found[0] > 1000, found[2] - found[1] < 100)
"""
    environ = os.environ | devices.environment(())
    assert subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True).stdout == "True True\n"


def test_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "a,b,c")
    monkeypatch.setenv("PATH", "")  # no nvidia-smi: names serve as they are
    found = devices.visible()
    assert [[d.name for d in group] for group in devices.groups(found, 1)] == [["a"], ["b"], ["c"]]
    assert [[d.name for d in group] for group in devices.groups(found, 2)] == [["a", "b"]]
    assert devices.groups([], 1) == [()]
    with pytest.raises(BadInput, match="needs 4 GPUs, 3 are visible"):
        devices.groups(found, 4)


def test_two_campaigns_never_share_a_gpu(tmp_path: Path) -> None:
    """A second process waits, takes a group whole or not at all, and gets the GPU once the first is gone with its child."""
    folder = tmp_path / "locks"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), "gpu-0"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    holder.stdout.readline()
    waits = 0

    def ended() -> bool:
        nonlocal waits
        waits += 1
        return waits > 1

    with pytest.raises(Cancelled):
        devices.hold([Device("gpu-0", "gpu-0")], ended, folder)
    assert devices._try_to_hold([Device("gpu-1", "gpu-1"), Device("gpu-0", "gpu-0")], folder) is None
    devices.hold([Device("gpu-1", "gpu-1")], folder=folder).release()  # the other one is free, and was given back
    holder.kill()
    holder.wait()
    started = time.monotonic()
    devices.hold([Device("gpu-0", "gpu-0")], folder=folder).release()
    assert time.monotonic() - started < 5


def test_an_engine_that_outlives_its_flow_keeps_the_gpu(tmp_path: Path) -> None:
    """The memory is still taken, whoever started it."""
    held = devices.hold([Device("gpu-0", "gpu-0")], folder=tmp_path)
    child = process.spawn(["sleep", "60"], tmp_path / "log", fds=held.fds)
    held.release()
    assert devices._try_to_hold([Device("gpu-0", "gpu-0")], tmp_path) is None
    process.end(child)
    devices.hold([Device("gpu-0", "gpu-0")], folder=tmp_path).release()


def test_memory_that_is_short_is_told_with_numbers() -> None:
    free = devices.available_memory()
    assert 0 < free < 2**60
    devices.require_memory(1, "a model")
    with pytest.raises(SpinflowError, match=r"a model needs about 1048576.0 GiB of memory, [\d.]+ GiB are free; end other programs"):
        devices.require_memory(2**50, "a model", patience_s=0.0)


def test_gpu_memory_that_is_short_is_told_with_numbers(smi: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    first, second = devices.visible()
    devices.require_gpu_memory([first], 0.8, "vLLM", patience_s=0.0)
    with pytest.raises(SpinflowError, match="vLLM takes 80% of GPU 1's 78 GiB, 0 GiB are free"):
        devices.require_gpu_memory([first, second], 0.8, "vLLM", patience_s=0.0)


def test_weights_are_counted_from_the_headers(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert devices.weight_bytes(tiny_model, 4) == 4 * model.num_parameters()
