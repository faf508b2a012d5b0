"""Training over two processes, through the commands of a machine with two GPUs.

CUDA_VISIBLE_DEVICES names two GPUs that no machine has. So the launcher composes what it would for two, and torch, which sees
none, computes on the CPU and talks over gloo.
"""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from transformers import AutoConfig, AutoModelForCausalLM

from spin_core.contracts.rows import EPOCHS
from spin_core.recipe import ModelSettings, Recipe
from spin_core.runtime import devices, process, progress
from spin_core.runtime.devices import Device
from spin_core.runtime.errors import BadInput, Cancelled
from spin_core.runtime.machine import Place
from spin_core.selection.weights import blend
from spin_core.store import Store
from spin_core.training.launch import CONFIGS, arguments
from tests.spin_core.training.test_training import killed_at, make_pairs, on_step
from tests.stages import finetune, import_model, score

ROOT = Path(__file__).parents[3]
needs_deepspeed = pytest.mark.skipif(not find_spec("deepspeed"), reason="DeepSpeed is not installed")
Made = tuple[list[dict[str, Any]], dict[str, torch.Tensor]]


class World:
    """A model with its scored pairs, and trainings of it."""

    def __init__(self, folder: Path, model: Path) -> None:
        store = Store(folder / "home")
        self._folder, self._name = folder, str(model)
        # 23 twice in steps of 15, so that the last step has one pair for two devices; a step's answers on one device are more
        # than the LM head takes at once
        pairs = make_pairs(store, 23, prompt=(1, 40), real=(60, 120), generated=(60, 120))
        self._parents = [import_model(store, ModelSettings(name=self._name)), pairs]
        self.start = self._parents[0].path
        self._parents.append(score(store, self.recipe(), *self._parents, splits=["train"]))
        self.alone = self.train("alone")

    def recipe(self, **training: Any) -> Recipe:
        settings = {
            "epochs": 2,
            "pairs_per_step": 15,
            "tokens_per_micro_batch": 4096,
            "warmup_ratio": 0.0,
            "learning_rate": 1e-3,
            "precision": "fp32",
            "beta": 0.1,
        }
        content = {
            "name": "t",
            "model": {"name": self._name},
            "data": {"name": "demo", "validation_size": 9},
            "training": settings | training,
        }
        return Recipe.model_validate(content)

    def train(self, home: str, **training: Any) -> Made:
        """The lines of metrics.jsonl, and the weights as from_pretrained gives them."""
        made = finetune(Store(self.home(home)), self.recipe(**training), 0, *self._parents)
        lines = [json.loads(line) for line in (made.path / "metrics.jsonl").read_text().splitlines()]
        model, report = AutoModelForCausalLM.from_pretrained(made.path, output_loading_info=True)
        assert not any(report.values()), report
        return lines, model.state_dict()

    def home(self, name: str) -> Path:
        """The home of a training."""
        return self._folder / name


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> World:
    return World(tmp_path_factory.mktemp("untied"), tiny_model)


@pytest.fixture(scope="module")
def tied_world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> World:
    """Its embedding is its LM head, as in most small models: FSDP2 must keep both in one unit."""
    folder = tmp_path_factory.mktemp("tied")
    shutil.copytree(tiny_model, folder / "model")
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny_model, tie_word_embeddings=True)).save_pretrained(folder / "model")
    return World(folder, folder / "model")


@pytest.fixture
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    hold = devices._try_to_hold
    monkeypatch.setattr(devices, "_try_to_hold", lambda group, folder: hold(group, tmp_path))
    return tmp_path


@pytest.fixture
def two_gpus(own_locks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "none-0,none-1")
    paths = [str(ROOT), str(Path(__file__).parent / "cpu_fsdp"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def trainers(pids: list[int]) -> list[int]:
    """Those that train, without their launcher."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids}
    return [pid for pid, command in commands.items() if b"spin_core.training.job" in command and b"accelerate" not in command]


def check(found: Made, alone: Made, tolerance: float = 1e-4) -> None:
    """The losses of one process, its weights, and all of them in fp32."""
    assert [line["step"] for line in found[0]] == [line["step"] for line in alone[0]] == [1, 2, 3, 4]
    for one, other in zip(alone[0], found[0], strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "logps/real"):
            assert other[name] == pytest.approx(one[name], rel=tolerance, abs=tolerance)
    assert found[1].keys() == alone[1].keys()
    for name, weight in alone[1].items():
        assert found[1][name].dtype == torch.float32
        assert torch.allclose(found[1][name], weight, atol=tolerance)  # a weight moves by up to 1e-2 a step


@pytest.mark.parametrize(
    "sharding", ["ddp", "fsdp2", pytest.param("zero2", marks=needs_deepspeed), pytest.param("zero3", marks=needs_deepspeed)]
)
def test_two_processes_train_the_model_that_one_trains(world: World, two_gpus: None, sharding: str) -> None:
    """If it fails, how many GPUs a user has changes the result, or what is saved is a part of the model."""
    counts: list[int] = []
    end = on_step(1, lambda pids: counts.append(len(trainers(pids))))
    try:
        check(world.train(sharding, sharding=sharding), world.alone)
    finally:
        end()
    assert counts == [2]


@pytest.mark.long
def test_two_processes_train_with_trl_what_one_trains(world: World, two_gpus: None) -> None:
    """Devices hold different numbers of pairs, and in the last step one holds none."""
    # against the packed backend: RMSProp amplifies what they round differently
    check(world.train("trl", backend="trl"), world.alone, 2e-3)


@pytest.mark.long
def test_a_sharded_run_that_was_killed_continues(tied_world: World, two_gpus: None) -> None:
    """If it fails, a long sharded training starts anew after every crash, or goes on with another optimiser state.

    The model of the first epoch is saved whole between the first checkpoint and the others, which stay in parts.
    """
    settings: dict[str, Any] = {"sharding": "fsdp2", "save_steps": 1, "choose_epoch": True}
    with killed_at(3):
        tied_world.train("killed", **settings)
    (work,) = (tied_world.home("killed") / "work").iterdir()
    assert list(work.glob("fsdp2/checkpoint-[2-3]/pytorch_model_fsdp_0"))  # in parts, so it was really sharded
    done = []
    end = progress.listen(lambda event: done.append(event.done))
    check(tied_world.train("killed", **settings), tied_world.alone)
    end()
    assert not work.exists()
    assert {1, 2}.isdisjoint(done)
    (first,) = tied_world.home("killed").glob(f"artifacts/model/*/{EPOCHS}/1")
    out = tied_world.home("between")
    out.mkdir()
    blend(tied_world.start, first, 0.5, out)  # the head is its embedding, and was saved beside it
    shutil.copy(first / "config.json", out)
    start, end, between = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (tied_world.start, first, out))
    assert torch.allclose(between["lm_head.weight"], (start["lm_head.weight"] + end["lm_head.weight"]) / 2, atol=1e-6)


@pytest.mark.skipif(bool(find_spec("deepspeed")), reason="DeepSpeed is installed")
def test_a_missing_deepspeed_is_told_before_anything_starts(world: World, two_gpus: None) -> None:
    with pytest.raises(BadInput, match=r"zero3 needs DeepSpeed; pip install 'spinflow\[train\]', or take fsdp2"):
        world.train("none", sharding="zero3")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_understands_the_command(file: Path) -> None:
    """An unknown key or flag would end every training on that kind of machine."""
    command = arguments(Place(8), file.stem)
    args, _, _ = _validate_launch_command(launch_command_parser().parse_args([*command[2:], "-m", "x"]))
    assert (args.num_processes, args.num_machines, args.mixed_precision, args.use_cpu) == (8, 1, "no", False)
    kind = {"ddp": "multi_gpu", "fsdp2": "use_fsdp"}.get(file.stem, "use_deepspeed")
    assert [name for name in ("multi_gpu", "use_fsdp", "use_deepspeed") if getattr(args, name)] == [kind]
    assert file.stem in str(Recipe.model_json_schema()["$defs"]["TrainingSettings"]["properties"]["sharding"])
    assert (arguments(Place(0), file.stem), arguments(Place(1), "ddp")) == ([], [])  # one process needs no launcher, nor DDP's buffers
    if file.stem == "fsdp2":
        assert (args.fsdp_version, args.fsdp_state_dict_type) == (2, "SHARDED_STATE_DICT")
    if file.stem.startswith("zero"):
        assert f"zero{args.zero_stage}" == file.stem


def test_training_and_scoring_hold_their_gpus(world: World, own_locks: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two campaigns on one machine would otherwise run out of each other's GPU memory."""
    gpus = [Device("0", "GPU-a"), Device("1", "GPU-b")]
    monkeypatch.setattr(devices, "visible", lambda: gpus)
    seen = []

    def run_job(module: str, *args: Any, env: dict[str, str], fds: tuple[int, ...], **kwargs: Any) -> None:
        taken = []
        for gpu in gpus:
            if held := devices._try_to_hold([gpu], own_locks):
                held.release()
            else:
                taken.append(gpu.name)
        seen.append((module, taken, env["CUDA_VISIBLE_DEVICES"], len(fds)))
        raise Cancelled("enough")

    monkeypatch.setattr(process, "run_job", run_job)
    store = Store(tmp_path / "home")
    for call in (lambda: score(store, world.recipe(), *world._parents[:2]), lambda: finetune(store, world.recipe(), 0, *world._parents)):
        with pytest.raises(Cancelled):
            call()
    *scorers, trainer = seen
    assert trainer == ("spin_core.training.job", ["0", "1"], "0,1", 2)
    # side by side, so each may see that the other's is taken, too
    assert sorted((module, own, fds) for module, _, own, fds in scorers) == [("spin_core.scoring.job", gpu, 1) for gpu in ("0", "1")]
    assert all(own in taken for _, taken, own, _ in scorers)
    devices.hold(gpus).release()
