"""A vLLM server that somebody else runs: a Kubernetes service, Ray Serve, a Slurm job."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from spin_core.encoding.ends import Ends
from spin_core.generation.client import Client
from spin_core.generation.engine import Address, Answer, Ended, OnAnswer, Prompt, Sampler
from spin_core.runtime.errors import Cancelled, ChildCrash
from spin_core.runtime.progress import Progress, emit

_PATIENCE_S = 300.0
_POLL_S = 2.0


class Endpoint:
    """One of `generation.endpoints`. The constructor returns once it serves the model.

    The answers must come from θ_t and no other model, so a server takes part only while it serves a model under the name of
    θ_t's folder in the store, its digest. Every request has a seed, on which a server of vLLM's CPU build dies while it chunks
    prefills: such a one has to be started with `--no-enable-chunked-prefill`.
    """

    node = where = ""
    window = 2048  # twice vLLM's batch on a large card; what a smaller one cannot take waits there

    def __init__(self, url: str, sampler: Sampler, ended: Ended) -> None:
        self._digest, settings = sampler.model.digest, sampler.settings
        self._client = Client(url, self._digest, settings, os.environ.get(settings.api_key_env, ""))
        self._wait_until_served(sampler.model.path, ended)

    def _wait_until_served(self, model: Path, ended: Ended) -> None:
        name = f"waiting for {self._client.url}"
        started = time.monotonic()
        waited = False
        while not self.alive():
            waited = True
            seen = ", ".join(self._client.served())
            problem = f"it serves {seen}, not {self._digest}" if seen else "it does not answer"
            if ended():
                raise Cancelled("the run was ended")
            if time.monotonic() - started > _PATIENCE_S:
                remedy = f"start it with: vllm serve {model} --served-model-name {self._digest} --generation-config vllm"
                raise ChildCrash(f"{self._client.url} cannot be used, {problem}", exit_code=-1, remedy=remedy)
            emit(Progress(name, 0, 1, "", f"{problem}, {time.monotonic() - started:.0f} s"))
            time.sleep(_POLL_S)
        if waited:
            emit(Progress(name, 1, 1))

    def alive(self) -> bool:
        """Whether the server answers and serves θ_t."""
        return self._digest in self._client.served() and self._client.healthy()

    @property
    def address(self) -> Address:
        """Where it is served."""
        return self._client.address

    def sample(self, prompts: Sequence[Prompt], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        """See `Engine.sample`."""
        return self._client.sample(prompts, ends, on_answer)

    def close(self) -> None:
        """The server is not ours to end."""
