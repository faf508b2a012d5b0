"""LoRA and QLoRA through the real children, on a tiny model."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from spin_core.contracts.rows import TEST_FILE, TRAIN_FILE
from spin_core.contracts.tables import read_rows
from spin_core.lm import adapter
from spin_core.lm.blocks import ATTENTION
from spin_core.lm.logprobs import answer_logps, collate
from spin_core.lm.meter import cost_of
from spin_core.lm.packing import pack
from spin_core.recipe import ModelSettings, Recipe
from spin_core.recipe.training import LoraSettings
from spin_core.runtime.errors import BadInput, SpinflowError
from spin_core.scoring.scores import read_scores
from spin_core.store import Ref, Store
from tests.spin_core.training.test_training import killed_at, make_pairs, recipe_for, steps
from tests.stages import finetune, import_model, score

LORA = LoraSettings(r=4, alpha=8.0).model_dump()
World = tuple[Store, Ref, Ref, Ref]


def lora_recipe(model: Path, lora: dict[str, Any] | None = None, **training: Any) -> Recipe:
    """A rate at which a few steps move the tiny model."""
    return recipe_for(model, lora=LORA | (lora or {}), learning_rate=training.pop("learning_rate", 1e-2), **training)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> World:
    store = Store(tmp_path_factory.mktemp("home"))
    model = import_model(store, ModelSettings(name=str(tiny_model)))
    pairs = make_pairs(store, 20)
    return store, model, pairs, score(store, recipe_for(tiny_model), model, pairs)


@pytest.fixture(scope="module")
def trained(world: World, tiny_model: Path) -> Ref:
    store, model, pairs, reference = world
    return finetune(store, lora_recipe(tiny_model), 0, model, pairs, reference)


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logps(model: Any, pairs: Ref) -> torch.Tensor:
    rows = read_rows(pairs.path / TRAIN_FILE)
    with torch.no_grad():
        return answer_logps(model, collate([row["prompt_ids"] for row in rows], [row["real_ids"] for row in rows]))


def test_the_artifact_is_the_full_model_of_base_and_adapter(world: World, trained: Ref) -> None:
    """What the next iteration samples from and is scored under must be the model that was trained, for tools that know no peft."""
    _, model, pairs, _ = world
    assert steps(trained)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert 0.0 < steps(trained)[0]["mfu"] < 1.0
    merged, base = load(trained.path), load(model.path)
    assert all(weight.dtype == torch.float32 for weight in load_file(trained.path / "model.safetensors").values())
    adapted = PeftModel.from_pretrained(load(model.path), trained.path / adapter.FOLDER)
    found = logps(merged, pairs)
    assert torch.allclose(found, logps(adapted, pairs), atol=1e-5, rtol=0)
    assert (found - logps(base, pairs)).abs().max() > 0.1, "the adapter learned nothing"
    same = {name for name, weight in base.state_dict().items() if torch.equal(weight, merged.state_dict()[name])}
    assert same == {name for name in base.state_dict() if "_proj" not in name}
    assert sorted(file.name for file in (trained.path / adapter.FOLDER).iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert (trained.path / "tokenizer.json").exists()


@pytest.mark.long
def test_the_next_iteration_starts_from_the_merged_model(world: World, trained: Ref, tiny_model: Path) -> None:
    """Its reference is θ_1, never the first base: against θ_0's log-probs the step-0 check stops the run."""
    store, _model, pairs, first = world
    recipe = lora_recipe(tiny_model)
    second = finetune(store, recipe, 0, trained, pairs, score(store, recipe, trained, pairs))
    assert steps(second)[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    adapted = PeftModel.from_pretrained(load(trained.path), second.path / adapter.FOLDER)
    assert torch.allclose(logps(load(second.path), pairs), logps(adapted, pairs), atol=1e-5, rtol=0)
    with pytest.raises(SpinflowError, match="step-0 check failed"):
        finetune(store, recipe, 0, trained, pairs, first)


def test_only_the_adapter_trains(tiny_model: Path) -> None:
    model = adapter.attach(load(tiny_model), LORA, seed=0, bf16=False)
    trains = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trains == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert len(trains) == 2 * 7 * 2  # two factors of seven layers in two blocks, none of the LM head
    answer_logps(model, collate([[5, 6]], [[7, 8]])).sum().backward()
    assert all((parameter.grad is not None) == (name in trains) for name, parameter in model.named_parameters())


def test_layout_and_checkpointing_do_not_change_the_losses(world: World, tiny_model: Path, trained: Ref, tmp_path: Path) -> None:
    """`trained` is the packed run without gradient checkpointing; a frozen base must not cut the recomputed graph."""
    _, model, pairs, reference = world
    expected = [(line["loss"], line["grad_norm"]) for line in steps(trained)]
    recipe = lora_recipe(tiny_model, backend="trl", gradient_checkpointing=True)
    found = steps(finetune(Store(tmp_path), recipe, 0, model, pairs, reference))
    for line, one in zip(found, expected, strict=True):
        assert (line["loss"], line["grad_norm"]) == pytest.approx(one, rel=1e-3)  # RMSProp's first steps amplify rounding


def test_frozen_weights_in_bf16_change_no_number_under_autocast(tiny_model: Path) -> None:
    """They halve the memory of a bf16 run, and the reference was scored with fp32 weights."""
    found = []
    for bf16 in (False, True):
        model = adapter.attach(load(tiny_model), LORA, seed=0, bf16=bf16)
        assert (model.get_decoder().layers[0].mlp.up_proj.base_layer.weight.dtype == torch.bfloat16) == bf16
        model.set_attn_implementation(ATTENTION)
        with torch.autocast("cpu", torch.bfloat16):
            loss = answer_logps(model, pack([[5, 6], [5, 6]], [[7, 8, 9], [10, 11]])).sum()
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.long
def test_a_killed_run_continues_with_its_adapter(world: World, tiny_model: Path, tmp_path: Path) -> None:
    """Checkpoints hold the adapter alone; the losses are those of a run that was never killed."""
    _, model, pairs, reference = world
    recipe = lora_recipe(tiny_model, epochs=10, save_steps=10, learning_rate=1e-3)
    whole = finetune(Store(tmp_path / "whole"), recipe, 0, model, pairs, reference)
    store = Store(tmp_path / "killed")
    with killed_at(15):
        finetune(store, recipe, 0, model, pairs, reference)
    (checkpoint,) = store.home.glob("work/*/*/checkpoint-10")
    assert (checkpoint / "adapter_model.safetensors").exists()
    assert not (checkpoint / "model.safetensors").exists()
    resumed = finetune(store, recipe, 0, model, pairs, reference)
    for one, other in zip(steps(whole), steps(resumed), strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-6)
    one, other = (load_file(ref.path / "model.safetensors") for ref in (whole, resumed))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        (["query"], r"target_modules: .*query.* in a llama model: .*take all-linear, or from down_proj, gate_proj"),
        (["q_proj", "v_porj"], r"\['v_porj'\] in a llama model: no such layer"),
        (["input_layernorm"], "input_layernorm.*not supported"),
        (["q_proj", "lm_head"], "lm_head.*share one weight"),
    ],
)
def test_impossible_targets_are_one_line(tiny_model: Path, targets: list[str], says: str) -> None:
    model = load(tiny_model)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    with pytest.raises(BadInput, match=says) as caught:
        adapter.attach(model, LORA | {"target_modules": targets}, seed=0, bf16=False)
    assert "\n" not in str(caught.value)


def test_quantised_training_needs_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match="4bit needs bitsandbytes; pip install bitsandbytes"):
        adapter.quantized("4bit", bf16=False)
    assert adapter.quantized(None, bf16=False) == {}


@pytest.mark.long
def test_a_quantised_base_is_its_own_reference(world: World, tiny_model: Path) -> None:
    """Scored under θ_0 the step-0 check would fail; merged into Q(θ_0), every iteration would keep its rounding."""
    pytest.importorskip("bitsandbytes")
    store, model, pairs, plain = world
    recipe = lora_recipe(tiny_model, {"quantize": "4bit"})
    reference = score(store, recipe, model, pairs)
    train, full = (read_scores(ref.path / "scores.parquet", pairs.path / TRAIN_FILE)["real_logp"].to_numpy() for ref in (reference, plain))
    assert abs(train - full).max() > 0.05, "nothing was quantised"
    held_out = [read_scores(ref.path / "test_scores.parquet", pairs.path / TEST_FILE) for ref in (reference, plain)]
    assert held_out[0].equals(held_out[1])
    new = finetune(store, recipe, 0, model, pairs, reference)
    assert steps(new)[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert "quantization_config" not in json.loads((new.path / "config.json").read_text())
    adapted = PeftModel.from_pretrained(load(model.path), new.path / adapter.FOLDER)
    assert torch.allclose(logps(load(new.path), pairs), logps(adapted, pairs), atol=1e-5, rtol=0)
    loaded = AutoModelForCausalLM.from_pretrained(model.path, dtype=torch.float32, **adapter.quantized("4bit", bf16=False))
    costs = [cost_of(adapter.attach(base, LORA | {"quantize": "4bit"}, 0, False)) for base in (loaded, load(model.path))]
    assert costs[0] == costs[1], "two 4-bit weights in a byte are two weights"
