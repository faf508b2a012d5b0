"""The warm start through its real child, on a tiny model."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from spin_core.contracts.rows import ENCODED
from spin_core.contracts.tables import read_rows, write_rows
from spin_core.recipe import ModelSettings, Recipe, SftSettings
from spin_core.runtime import process, progress
from spin_core.runtime.errors import BadInput, ChildCrash
from spin_core.runtime.launcher import Launcher
from spin_core.sft.job import batch_of
from spin_core.sft.stage import Warm
from spin_core.store import Ref, Spec, Store
from tests.stages import import_model

World = tuple[Store, Ref, Ref]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> World:
    """A model, and 24 rows whose answer follows from the prompt."""
    store = Store(tmp_path_factory.mktemp("home"))

    def write(out: Path) -> None:
        for split, numbers in (("train", range(24)), ("validation", range(24, 32))):
            rows = [{"row_id": str(n), "prompt_ids": [10 + n, 1], "real_ids": [100, 101, 102 + n % 2, 2]} for n in numbers]
            write_rows(out / f"{split}.parquet", rows, ENCODED)

    return store, import_model(store, ModelSettings(name=str(tiny_model))), store.build(Spec("encoded", 1, {}), write)


def warm(world: World, **keys: object) -> Warm:
    _, model, encoded = world
    settings = SftSettings.model_validate({"learning_rate": 3e-3, "rows_per_step": 8, "tokens_per_micro_batch": 24, "epochs": 4} | keys)
    return Warm(settings, "fp32", "ddp", model, encoded)


def nll(folder: Path, encoded: Ref) -> float:
    """Nats a token of the validation rows' answers, row by row."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    found, tokens = 0.0, 0
    for row in read_rows(encoded.path / "validation.parquet"):
        ids = torch.tensor([[*row["prompt_ids"], *row["real_ids"]]])
        with torch.no_grad():
            logp = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        found, tokens = found - float(logp[len(row["prompt_ids"]) - 1 :].sum()), tokens + len(row["real_ids"])
    return found / tokens


def test_the_best_epoch_is_the_one_that_is_kept(world: World) -> None:
    store, base, encoded = world
    made = Launcher(store).build(warm(world))
    lines = [json.loads(line) for line in (made.path / "sft.jsonl").read_text().splitlines()]
    curve = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len([line for line in lines if "loss" in line]) == 3 * (len(curve) - 1)  # steps of exactly 8 of 24 rows
    assert curve[0] == pytest.approx(nll(base.path, encoded), abs=1e-4)
    assert min(curve) < curve[0] - 1.0
    assert nll(made.path, encoded) == pytest.approx(min(curve), abs=1e-4)
    assert made.facts["nll"] == min(curve)
    assert "validation NLL" in made.facts["message"]
    assert (made.path / "chat_template.jinja").exists()
    assert not (made.path / "training_args.bin").exists()


def test_a_killed_warm_start_goes_on_to_the_same_weights(world: World, tmp_path: Path) -> None:
    store = world[0]
    whole = Launcher(store).build(warm(world))
    other = Store(tmp_path)
    for ref in world[1:]:
        target = other.home / "artifacts" / ref.kind / ref.digest
        target.parent.mkdir(parents=True)
        os.symlink(ref.path, target)

    def look(event: progress.Progress) -> None:
        if event.name == "warm start" and event.done == 7:
            for child in process.live():
                os.kill(child.pid, signal.SIGKILL)

    end = progress.listen(look)
    with pytest.raises(ChildCrash):
        Launcher(other).build(warm(world))
    end()
    again = Launcher(other).build(warm(world))
    assert (again.path / "model.safetensors").read_bytes() == (whole.path / "model.safetensors").read_bytes()
    steps = [json.loads(line)["step"] for line in (again.path / "sft.jsonl").read_text().splitlines() if '"loss"' in line]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("rows", "longest", "tokens", "world", "found"),
    [(64, 100, 4096, 1, (32, 2)), (64, 5000, 4096, 1, (1, 64)), (6, 10, 40, 1, (3, 2)), (64, 100, 4096, 8, (8, 1)), (4, 1, 99, 2, (2, 1))],
)
def test_a_step_has_exactly_its_rows(rows: int, longest: int, tokens: int, world: int, found: tuple[int, int]) -> None:
    assert batch_of(rows, longest, tokens, world) == found


def test_rows_that_devices_cannot_share_are_refused() -> None:
    with pytest.raises(BadInput, match="64 rows cannot be shared by 3 devices"):
        batch_of(64, 1, 99, 3)


def test_it_chooses_on_validation_rows_and_asks_for_them() -> None:
    with pytest.raises(ValueError, match=r"set data\.validation_size"):
        Recipe.model_validate({"name": "c", "model": {"name": "m"}, "data": {"name": "demo"}, "sft": {}})
