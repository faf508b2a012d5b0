"""Sampling from an OpenAI-compatible vLLM server.

Prompts go as token ids and `return_token_ids` brings the sampled ids back, so nothing is tokenised twice.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import httpx

from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Address, Answer, OnAnswer, Prompt
from spin_core.generation.sampling import fault, request_fields
from spin_core.recipe import GenerationSettings
from spin_core.runtime.errors import BadInput, ChildCrash

_MAX_OPEN = 1024  # requests a shard keeps open, the widest batch; the server queues what its own cannot take
# An engine that answers none of its open requests for this long is taken for dead. The whole batch may be at its first token
# when the clock starts, so it has ten minutes for prompts and kernels, and five seconds for each step of the longest answer:
# about half an hour at 256 tokens. A batch on two cores takes less than one second a step.
_SILENCE_S = 600.0
_SILENCE_A_TOKEN_S = 5.0
_ROW_AT_FAULT = {400, 413, 422}  # any other error says that the server cannot be used now


class Client:
    """The requests of one server under one model name."""

    def __init__(self, url: str, model: str, settings: GenerationSettings, key: str = "") -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._model, self._settings = model, settings
        self.address = Address(self.url, model, key)
        tls = httpx.create_ssl_context(trust_env=False)  # read once: every client of httpx reads all certificates anew, 12 ms
        self._options: dict[str, Any] = {
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "verify": tls,
            "trust_env": False,
        }
        self._patience_s = _SILENCE_S + _SILENCE_A_TOKEN_S * settings.max_new_tokens
        self._lock = threading.Lock()  # shards share a client, each in a thread of its own
        self._open = 0  # requests that wait for an answer
        self._heard = 0.0  # when the last answer came, or the first request after a pause was sent
        self._silent = False

    def served(self) -> list[str]:
        """The names of the models that the server serves to this key; empty where it does not answer as it should."""
        try:
            response = httpx.get(f"{self.url}/v1/models", timeout=10.0, **self._options)
            return [str(model["id"]) for model in response.json()["data"]] if response.status_code == 200 else []
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return []

    def healthy(self) -> bool:
        """Whether the server's engine can take work. One that was silent for too long cannot, whatever its server says of it."""
        if self._silent:
            return False
        try:
            return httpx.get(f"{self.url}/health", timeout=10.0, **self._options).status_code == 200
        except httpx.HTTPError:
            return False

    def sample(self, prompts: Sequence[Prompt], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        """See `Engine.sample`; why a prompt is refused becomes its answers' finish_reason. Raises ChildCrash if the server is gone."""
        return asyncio.run(self._sample(prompts, ends, on_answer))

    async def _sample(self, prompts: Sequence[Prompt], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        gate = asyncio.Semaphore(_MAX_OPEN)
        done = 0

        async def one(client: httpx.AsyncClient, prompt: Prompt) -> list[Answer]:
            nonlocal done
            async with gate:
                with self._waiting():
                    body = {"model": self._model, "prompt": prompt.ids, **request_fields(self._settings, ends, prompt)}
                    answers = await self._request(client, body, ends)
            for answer in answers:
                done += 1
                on_answer(done, len(answer.ids))
            return answers

        limits = httpx.Limits(max_connections=_MAX_OPEN)
        async with httpx.AsyncClient(timeout=None, limits=limits, **self._options) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    watch = group.create_task(self._watch())
                    tasks = [group.create_task(one(client, prompt)) for prompt in prompts]
                    await asyncio.gather(*tasks)
                    watch.cancel()
            except ExceptionGroup as problems:
                raise problems.exceptions[0] from None
        return [answer for task in tasks for answer in task.result()]

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """While the block runs, the server owes an answer."""
        with self._lock:
            if not self._open:
                self._heard = time.monotonic()
            self._open += 1
        try:
            yield
            self._heard = time.monotonic()
        finally:
            with self._lock:
                self._open -= 1

    async def _watch(self) -> None:
        """Raises ChildCrash once the server has been silent for too long: a hung engine keeps its connections and its health."""
        while not self._silent:
            await asyncio.sleep(self._patience_s / 100)
            self._silent = self._open > 0 and time.monotonic() - self._heard > self._patience_s
        what = f"{self.url} has answered none of {self._open} requests for {self._patience_s:.0f} s"
        raise ChildCrash(what, exit_code=-1, remedy="run again to continue")

    async def _request(self, client: httpx.AsyncClient, body: dict[str, Any], ends: Ends) -> list[Answer]:
        try:
            response = await client.post(f"{self.url}/v1/completions", json=body)
        except httpx.TransportError:
            raise ChildCrash(f"{self.url} went away in mid-flight", exit_code=-1, remedy="run again to continue") from None
        if response.status_code in _ROW_AT_FAULT:
            return [Answer([], f"error: {response.text[:300]}", "")] * body["n"]
        if response.status_code != 200:
            what = " ".join(response.text.split())[:200]
            raise ChildCrash(f"{self.url} answered {response.status_code}: {what}", exit_code=-1, remedy="run again to continue")
        choices: list[dict[str, Any]] = sorted(response.json()["choices"], key=lambda choice: choice.get("index", 0))
        answers = [Answer(choice["token_ids"], choice["finish_reason"], choice["text"].strip(), _logp(choice)) for choice in choices]
        problems = [fault(answer.ids, answer.finish_reason, self._settings.max_new_tokens, ends) for answer in answers]
        if len(answers) != body["n"]:
            problems = [f"it gave {len(answers)} answers for {body['n']}"]
        if problem := next(filter(None, problems), None):
            raise BadInput(f"{self.url} does not sample as it is asked to: {problem}", remedy="start it with --generation-config vllm")
        return answers


def _logp(choice: Mapping[str, Any]) -> float | None:
    logprobs = choice.get("logprobs")
    return math.fsum(logprobs["token_logprobs"]) if logprobs else None
