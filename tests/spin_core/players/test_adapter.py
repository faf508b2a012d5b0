"""Adapter folders: merged into their base in fp32, the base in the identity; or refused by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from spin_core.players.adapter import base_of
from spin_core.players.job import convert
from spin_core.players.stage import Import
from spin_core.recipe import ModelSettings
from spin_core.runtime.errors import BadInput


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "base"))


def adapt(base: Path, rows: int | None = None, **lora: Any) -> Path:
    """An adapter of `base` that does something; with `rows`, beside an embedding of so many rows, saved with it."""
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if rows:
        model.resize_token_embeddings(rows)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | lora
    adapted = get_peft_model(model, LoraConfig(**settings))
    torch.manual_seed(1)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn_like(parameter) * 0.3)
    out = base.parent / "adapter"
    adapted.save_pretrained(out)
    merged: Any = adapted.merge_and_unload()
    if "lm_head" in lora.get("modules_to_save", []):
        merged.config.tie_word_embeddings = False
    merged.save_pretrained(base.parent / "merged")
    return out


def run(adapter: Path) -> Path:
    found = base_of(adapter, str(adapter))
    assert found is not None
    out = adapter.parent / "out"
    convert({"source": str(adapter), "revision": None, "base": {"name": found.name, "revision": None}, "out": str(out)})
    return out


@pytest.mark.parametrize(
    "lora", [{}, {"use_dora": True}, {"use_rslora": True}, {"modules_to_save": ["lm_head"]}, {"target_modules": ["lm_head"]}]
)
def test_an_adapter_is_merged_into_its_base(base: Path, lora: dict[str, Any]) -> None:
    """What sampling, scoring and training see is one whole model: base and adapter, and no trace of peft."""
    out = run(adapt(base, **lora))
    right, found = load_file(base.parent / "merged" / "model.safetensors"), load_file(out / "model.safetensors")
    assert right.keys() == found.keys()
    for name, tensor in right.items():
        torch.testing.assert_close(found[name], tensor)
    assert not list(out.glob("adapter*"))
    assert AutoTokenizer.from_pretrained(out).eos_token == "<|im_end|>"  # the adapter has none of its own


def test_tokens_that_the_fine_tuning_added_come_with_the_adapter(base: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["spinflow"])
    adapter = adapt(base, rows=260, modules_to_save=["embed_tokens", "lm_head"])
    tokenizer.save_pretrained(adapter)
    out = run(adapter)
    assert load_file(out / "model.safetensors")["model.embed_tokens.weight"].shape[0] == 260
    right: Any = AutoModelForCausalLM.from_pretrained(base.parent / "merged")
    ids = torch.tensor([[3, 259, 7]])
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(out)(ids).logits, right(ids).logits)


def test_a_head_of_its_own_unties_the_base(base: Path) -> None:
    """Tied in the base, trained apart in the adapter: the config must say so, or vLLM would take the embedding for the head."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, tie_word_embeddings=True)
    model.save_pretrained(base)
    out = run(adapt(base, modules_to_save=["lm_head"]))
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    found = load_file(out / "model.safetensors")
    assert not torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])


def test_the_base_is_part_of_the_identity(base: Path, tmp_path: Path) -> None:
    """Another base under the same name is another model."""
    stage = Import(ModelSettings(name=str(adapt(base))), tmp_path)
    before = stage.spec().digest
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {"model.norm.weight": tensors["model.norm.weight"] * 2}, base / "model.safetensors", metadata={"format": "pt"})
    assert stage.spec().digest != before


def change(adapter: Path, **entries: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_the_base_is_found_beside_its_adapter(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path was relative to where the training ran."""
    adapter = adapt(base)
    change(adapter, base_model_name_or_path="../base")
    monkeypatch.chdir("/")
    found = base_of(adapter, "a")
    assert found is not None
    assert Path(found.name) == base
    change(adapter, base_model_name_or_path="org/model", revision="v1")
    found = base_of(adapter, "a")
    assert found is not None
    assert (found.name, found.revision) == ("org/model", "v1")


@pytest.mark.parametrize("name", ["/nowhere/model", "./nowhere", "a/b/c", ""])
def test_a_base_that_is_not_there_is_named(base: Path, name: str) -> None:
    adapter = adapt(base)
    change(adapter, base_model_name_or_path=name)
    with pytest.raises(BadInput, match=r"the adapter a .*set base_model_name_or_path"):
        base_of(adapter, "a")


def test_whole_weights_beside_an_adapter_are_refused(base: Path) -> None:
    """They may have the adapter in them or not: adding it twice would be silent."""
    adapter = adapt(base)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(base / name, adapter)
    with pytest.raises(BadInput, match=r"a holds an adapter .*move the adapter's files away"):
        base_of(adapter, "a")


def test_an_adapter_of_another_model_is_refused(base: Path) -> None:
    adapter = adapt(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base, num_hidden_layers=1)
    model.save_pretrained(base)
    with pytest.raises(BadInput, match=r"does not fit a llama .*4 of its weights have no place there, first .*layers\.1"):
        run(adapter)


def test_half_an_adapter_is_refused(base: Path) -> None:
    adapter = adapt(base)
    file = adapter / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "layers.1" not in name}, file)
    with pytest.raises(BadInput, match=r"weights that it should have are missing, first .*layers\.1"):
        run(adapter)


def test_a_learned_prompt_is_refused(base: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    get_peft_model(model, PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")).save_pretrained(base.parent / "adapter")
    with pytest.raises(BadInput, match=r"cannot be merged into its base: .*learns a prompt"):
        run(base.parent / "adapter")


def test_a_quantised_base_is_named_with_its_adapter(base: Path) -> None:
    """What QLoRA on a ready-made 4-bit model leaves."""
    adapter = adapt(base)
    config = json.loads((base / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}
    }
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match=r"base of the adapter .*/adapter\) is quantised \(bitsandbytes\)"):
        run(adapter)
