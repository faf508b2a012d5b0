"""What an import writes, and what it refuses: no weight is ever made up, and nothing is left over."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from spin_core.players.job import convert
from spin_core.players.stage import Import
from spin_core.recipe import ModelSettings
from spin_core.runtime.errors import BadInput
from spin_core.runtime.launcher import Launcher
from spin_core.store import Store

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def run(folder: Path, base: dict[str, Any] | None = None) -> Path:
    out = folder.parent / f"{folder.name}-out"
    convert({"source": str(folder), "revision": None, "base": base, "out": str(out)})
    return out


def refusal(folder: Path, base: dict[str, Any] | None = None) -> str:
    with pytest.raises(BadInput) as error:
        run(folder, base)
    assert "run again" not in str(error.value)
    return str(error.value)


def rewrite(folder: Path, change: Callable[[Tensors], Tensors], **config: Any) -> None:
    file = folder / "model.safetensors"
    tensors = change(load_file(file))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(written))


def test_the_artifact_has_the_weights_of_the_folder(folder: Path) -> None:
    old, new = load_file(folder / "model.safetensors"), load_file(run(folder) / "model.safetensors")
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "pretrained_model."])
def test_a_wrapper_s_prefix_stops_the_import(folder: Path, prefix: str) -> None:
    """torch.compile, DDP and others leave one; transformers then starts every weight at random, and goes on."""
    rewrite(folder, lambda t: {prefix + name: tensor for name, tensor in t.items()})
    text = refusal(folder)
    assert "first model.embed_tokens.weight" in text
    assert f"first {prefix}lm_head.weight" in text
    assert f"a wrapper left {prefix!r}" in text


def test_half_a_checkpoint_stops_the_import(folder: Path) -> None:
    rewrite(folder, lambda t: {name: tensor for name, tensor in t.items() if "layers.1." not in name})
    assert "9 of 21 weights are missing, first model.layers.1." in refusal(folder)


def test_a_model_without_its_head_stops_the_import(folder: Path) -> None:
    """`AutoModel.save_pretrained` leaves it out."""
    rewrite(folder, lambda t: {name: tensor for name, tensor in t.items() if name != "lm_head.weight"})
    text = refusal(folder)
    assert "1 of 21 weights are missing, first lm_head.weight" in text
    assert "tie_word_embeddings" in text


def test_layers_beyond_the_config_stop_the_import(folder: Path) -> None:
    rewrite(folder, lambda t: t, num_hidden_layers=1)
    assert "9 are left over, first model.layers.1." in refusal(folder)


def test_a_value_head_stops_the_import(folder: Path) -> None:
    rewrite(folder, lambda t: t | {"v_head.summary.weight": torch.zeros(1, 64)})
    assert "1 are left over, first v_head.summary.weight" in refusal(folder)


def test_another_shape_stops_the_import(folder: Path) -> None:
    rewrite(folder, lambda t: t, intermediate_size=96)
    assert "model.layers.0.mlp.down_proj.weight is [64, 128] in the file and [64, 96] in the model" in refusal(folder)


def test_another_architecture_stops_the_import(folder: Path) -> None:
    rewrite(folder, lambda t: t, model_type="gpt2", architectures=["GPT2LMHeadModel"], n_embd=64, n_head=2, n_layer=2, bos_token_id=None)
    assert "is not a whole GPT2LMHeadModel" in refusal(folder)


def test_an_architecture_that_nobody_knows_is_named(folder: Path) -> None:
    rewrite(folder, lambda t: t, model_type="mycustom")
    assert "'mycustom' is not one that transformers knows" in refusal(folder)
    rewrite(folder, lambda t: t, auto_map={"AutoConfig": "cfg.C", "AutoModelForCausalLM": "mod.M"})
    assert "'mycustom' is Python code of its own" in refusal(folder)


def test_tied_weights_may_be_there_once(folder: Path) -> None:
    """Most small models share one matrix; it is not missing, and the artifact holds it once too."""
    rewrite(folder, lambda t: {name: tensor for name, tensor in t.items() if name != "lm_head.weight"}, tie_word_embeddings=True)
    out = run(folder)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(model.lm_head.weight, load_file(folder / "model.safetensors")["model.embed_tokens.weight"])
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_head_that_differs_is_not_tied(folder: Path) -> None:
    """The config says tied, the file holds two: transformers reads both, vLLM would go by the config and sample from another model."""
    rewrite(folder, lambda t: t, tie_word_embeddings=True)
    out = run(folder)
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(load_file(out / "model.safetensors")["lm_head.weight"], load_file(folder / "model.safetensors")["lm_head.weight"])


def test_buffers_of_older_versions_may_be_left_over(folder: Path, tmp_path: Path) -> None:
    rewrite(folder, lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)})
    run(folder)
    config = GPT2Config(vocab_size=259, n_embd=64, n_layer=1, n_head=2, n_positions=64, bos_token_id=None, eos_token_id=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(folder / name, tmp_path / "gpt2")
    mask = {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64).tril(), "transformer.h.0.attn.masked_bias": torch.tensor(-1e4)}
    rewrite(tmp_path / "gpt2", lambda t: t | mask)
    run(tmp_path / "gpt2")


@pytest.mark.parametrize(
    "advice",
    [
        {"temperature": 0.9, "top_p": 0.6},
        {"do_sample": False, "top_k": 5},
        {"num_beams": 1, "length_penalty": 2.0},
        {"repetition_penalty": 1.3},
    ],
)
def test_advice_on_sampling_is_dropped_and_ends_are_kept(folder: Path, advice: dict[str, Any]) -> None:
    """Several well-known chat models ship values that transformers will not save; where an answer ends is another matter."""
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [2, 1, 999], "pad_token_id": 0} | advice))
    written = json.loads((run(folder) / "generation_config.json").read_text())
    written.pop("transformers_version")
    written.pop("_from_model_config", None)
    assert written == {"bos_token_id": 1, "eos_token_id": [2, 1], "pad_token_id": 0}


def test_without_a_generation_config_the_ends_come_from_the_config(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    rewrite(folder, lambda t: t, temperature=0.7, eos_token_id=[2, 1])
    assert json.loads((run(folder) / "generation_config.json").read_text())["eos_token_id"] == [2, 1]


def add_tokens(folder: Path, **changes: Any) -> Any:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return tokenizer


def test_a_template_s_token_without_a_row_is_named(folder: Path) -> None:
    """Chat tokens were added, the embedding stayed as it was: the first prompt would be an IndexError."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.chat_template = tokenizer.chat_template.replace("'<|im_start|>' + m['role']", "'<|' + m['role'] + '|>'")
    tokenizer.save_pretrained(folder)
    assert "'<|user|>' (id 259), and the model's embedding has 259 rows" in refusal(folder)


def test_an_end_without_a_row_is_named(folder: Path) -> None:
    add_tokens(folder, eos_token="<|end|>")
    assert "eos_token of the tokenizer" in refusal(folder)
    assert "'<|end|>' (id 259)" in refusal(folder)


def test_a_word_without_a_row_is_named(folder: Path) -> None:
    """Text can hold it, whatever the template does."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["spinflow"])
    tokenizer.save_pretrained(folder)
    assert "uses the token 'spinflow' (id 259)" in refusal(folder)


def test_padding_takes_an_id_that_the_model_has(folder: Path) -> None:
    """A [PAD] that was only ever a name: what is padded is masked, so EOS will do."""
    add_tokens(folder, pad_token="[PAD]")
    rewrite(folder, lambda t: t, pad_token_id=259)
    out = run(folder)
    assert AutoTokenizer.from_pretrained(out).pad_token_id == 2
    assert json.loads((out / "config.json").read_text()).get("pad_token_id") is None
    AutoModelForCausalLM.from_pretrained(out)


def test_a_special_token_that_nothing_writes_may_have_no_row(folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(folder)
    run(folder)


def test_a_refused_import_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    """Through the stage and its child: one line, exit status 2, no artifact."""
    rewrite(folder, lambda t: {"module." + name: tensor for name, tensor in t.items()})
    store = Store(tmp_path / "home")
    with pytest.raises(BadInput, match=r"first model\.embed_tokens\.weight"):
        Launcher(store).build(Import(ModelSettings(name=str(folder)), store.home))
    assert not list((tmp_path / "home").glob("artifacts/model/*"))
