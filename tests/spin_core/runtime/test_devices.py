"""GPUs and memory: who holds what, with a fake nvidia-smi and real processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from spin_core.runtime import devices, memory, process, progress
from spin_core.runtime.devices import Device
from spin_core.runtime.errors import BadInput, Cancelled, SpinflowError
from tests.rehearsal.machine import FIRST, H100, make_machine

ROOT = Path(__file__).parents[3]
HOLDER = """
import sys, time
from pathlib import Path
from spin_core.runtime import devices, process
devices.introduce("campaign other")
held = devices.hold([devices.Device(n, n) for n in sys.argv[2:]], folder=Path(sys.argv[1]), purpose="training")
child = process.spawn(["sleep", "60"], Path(sys.argv[1]) / "log", fds=held.fds)
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, each with 500 MiB in use."""
    monkeypatch.setenv("PATH", make_machine(tmp_path / "bin", 2)["PATH"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@contextmanager
def holding(folder: Path, *names: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds these GPUs."""
    other = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder), *names], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield other
    finally:
        other.kill()
        other.wait()


def told_while_waiting(folder: Path, *names: str) -> str:
    """What a person reads once this process has looked twice for these GPUs."""
    seen: list[str] = []
    end = progress.listen(lambda event: seen.append(f"{event.name}: {event.note}"))
    try:
        with pytest.raises(Cancelled):
            devices.hold([Device(name, name) for name in names], lambda: bool(seen), folder)
    finally:
        end()
    return seen[-1]


def test_all_gpus_are_seen_unless_some_are_named(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """nvidia-smi lists them where no variable does; /dev may number them otherwise, in a container."""
    found = devices.visible()
    assert [(d.name, d.total, d.model) for d in found] == [(str(FIRST + i), H100[1] * 2**20, H100[0]) for i in range(2)]
    assert all(d.free == d.total - 500 * 2**20 for d in found if d.total)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert devices.visible() == []


def test_a_gpu_is_known_by_its_uuid(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One campaign may call it 81 and another by its uuid: both must look at the same lock."""
    second = devices.visible()[1]
    found = []
    for names in ("81", second.uuid, " 81 , -1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)
        found += devices.visible()
    assert found == [second] * 3
    assert devices.environment(found[:1])["CUDA_VISIBLE_DEVICES"] == "81"


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
    with holding(folder, "gpu-0") as other:
        assert told_while_waiting(folder, "gpu-0") == f"waiting for GPU gpu-0: held by process {other.pid} (campaign other, training), 0 s"
        both = f"waiting for GPU gpu-1, gpu-0: GPU gpu-0 is held by process {other.pid} (campaign other, training), 0 s"
        assert told_while_waiting(folder, "gpu-1", "gpu-0") == both
        devices.hold([Device("gpu-1", "gpu-1")], folder=folder).release()  # the other one is free, and was given back
    started = time.monotonic()
    devices.hold([Device("gpu-0", "gpu-0")], folder=folder).release()
    assert time.monotonic() - started < 5


def test_a_holder_that_did_not_sign_is_still_named(tmp_path: Path) -> None:
    """The file is another user's and cannot be written, or says who held the GPU before: the kernel knows better."""
    with holding(tmp_path, "gpu-0") as other:
        file = tmp_path / "gpu-0"
        for content in ("", "not json", json.dumps({"pid": 1, "run": "campaign of yesterday, training"})):
            file.write_text(content)
            assert f"held by process {other.pid}, " in told_while_waiting(tmp_path, "gpu-0")


def test_a_run_never_waits_for_itself(tmp_path: Path) -> None:
    """It would wait for ever: two campaigns once did, after their first training."""
    gpu = [Device("0", "gpu-0")]
    with devices.hold(gpu, folder=tmp_path, purpose="sampling"):
        with pytest.raises(RuntimeError, match="scoring asks for GPU 0, which this run holds itself for sampling: a bug in spinflow"):
            devices.hold(gpu, folder=tmp_path, purpose="scoring")
        with holding(tmp_path, "gpu-1"), pytest.raises(Cancelled):
            devices.hold([Device("1", "gpu-1")], lambda: True, tmp_path)
    devices.hold([*gpu, Device("1", "gpu-1")], folder=tmp_path).release()  # nothing of the above is remembered


def test_no_link_leads_out_of_the_folder_of_locks(tmp_path: Path) -> None:
    """The folder is everybody's, and a lock's file is written to."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "gpu-0").symlink_to(mine)
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
        devices.hold([Device("0", "gpu-0")], folder=tmp_path / "locks")
    assert mine.read_text() == "mine"


def test_an_engine_that_outlives_its_flow_keeps_the_gpu(tmp_path: Path) -> None:
    """The memory is still taken, whoever started it."""
    held = devices.hold([Device("gpu-0", "gpu-0")], folder=tmp_path)
    child = process.spawn(["sleep", "60"], tmp_path / "log", fds=held.fds)
    held.release()
    assert "held by a child of this run that is about to end, " in told_while_waiting(tmp_path, "gpu-0")
    process.end(child)
    devices.hold([Device("gpu-0", "gpu-0")], folder=tmp_path).release()


def test_an_engine_whose_flow_is_gone_is_told_of(tmp_path: Path) -> None:
    """Whoever waits must know which program to end: the process that took the GPU is not there any more."""
    child = "subprocess.Popen(['sleep', '60'], stdout=2, pass_fds=held.fds)"
    code = HOLDER.partition("child =")[0] + f"import subprocess\nprint({child}.pid)"
    command = [sys.executable, "-c", code, str(tmp_path), "gpu-0"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    try:
        assert re.search(r"held by what process \d+ \(campaign other, training\) has left running, ", told_while_waiting(tmp_path, "gpu-0"))
    finally:
        os.kill(int(done.stdout), signal.SIGKILL)


def test_memory_that_is_short_is_told_with_numbers() -> None:
    free = memory.available_memory()
    assert 0 < free < 2**60
    memory.require_memory(1, "a model")
    with pytest.raises(SpinflowError, match=r"a model needs about 1048576.0 GiB of memory, [\d.]+ GiB are free; end other programs"):
        memory.require_memory(2**50, "a model", patience_s=0.0)


def test_gpu_memory_that_is_short_is_told_with_numbers(machine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.require_gpu_memory(devices.visible(), 0.9, "vLLM", patience_s=0.0)
    monkeypatch.setenv("PATH", make_machine(tmp_path / "full", 2, used=70000)["PATH"])
    with pytest.raises(SpinflowError, match="vLLM takes 90% of GPU 80's 80 GiB, 11 GiB are free; end the programs that nvidia-smi shows"):
        memory.require_gpu_memory(devices.visible(), 0.9, "vLLM", patience_s=0.0)
    memory.require_gpu_memory(devices.visible(), 0.1, "vLLM", patience_s=0.0)  # generation.gpu_memory: 0.1


def test_weights_are_counted_from_the_headers(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert memory.weight_bytes(tiny_model, 4) == 4 * model.num_parameters()
