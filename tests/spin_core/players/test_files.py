"""Folders that cannot be imported say why in one line, before anything is loaded."""

import json
import shutil
import struct
from pathlib import Path

import pytest

from spin_core.players.files import header, require_names, require_whole
from spin_core.runtime.errors import BadInput

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def write_tensors(file: Path, names: dict[str, str]) -> None:
    """A safetensors file with one byte a tensor, of the dtypes that are said."""
    entries = {name: {"dtype": dtype, "shape": [1], "data_offsets": [i, i + 1]} for i, (name, dtype) in enumerate(names.items())}
    text = json.dumps(entries).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * len(names))


def refusal(folder: Path) -> str:
    with pytest.raises(BadInput) as error:
        require_whole(folder, "m")
    text = str(error.value)
    assert "\n" not in text
    assert "run again" not in text
    return text


def test_a_whole_folder_passes(folder: Path) -> None:
    require_whole(folder, "m")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pointer_of_git_lfs_is_named(folder: Path, name: str) -> None:
    """`git clone` without git-lfs leaves them; the tokenizer's is as usual as the weights'."""
    (folder / name).write_text(POINTER)
    assert f"{name} is a pointer of git-lfs" in refusal(folder)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_weights_that_were_cut_are_named(folder: Path, share: float) -> None:
    """A download that broke off anywhere: in the header, in the weights, before the first byte."""
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * share)])
    assert "model.safetensors" in refusal(folder)
    assert "download it again" in refusal(folder)


def test_a_page_in_place_of_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_text("<!doctype html><title>404</title>" * 9)
    assert "no safetensors file" in refusal(folder)
    (folder / "config.json").write_text("<!doctype html>")
    assert "config.json cannot be read" in refusal(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    (folder / "model.safetensors").rename(folder / names[0])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": names[0], "b": names[1]}}))
    assert f"1 of 2 weight files are missing, first {folder / names[1]}" in refusal(folder)
    (folder / "model.safetensors.index.json").unlink()
    assert f"{names[0]} but neither model.safetensors nor" in refusal(folder)


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"quantization_config": {"quant_method": "awq"}},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"quantization_config": {"quant_method": "fp8"}},
        {"quantization_config": {"quant_method": "compressed-tensors"}},
        {"compression_config": {"format": "pack-quantized"}},
        {"quantization": {"group_size": 64, "bits": 4}},
        {"text_config": {"quantization_config": {"quant_method": "mxfp4"}}},
    ],
)
def test_a_quantised_model_is_named(folder: Path, config: dict[str, object]) -> None:
    """Its weights are rounded; loaded as they are, half of them would be missing."""
    change_config(folder, **config)
    assert "the model m is quantised" in refusal(folder)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("layers.0.q_proj.qweight", "I32"),
        ("layers.0.q_proj.weight", "F8_E4M3"),
        ("layers.0.q_proj.weight", "U8"),
        ("a.weight_scale_inv", "F32"),
    ],
)
def test_rounded_weights_are_named_where_the_config_is_silent(folder: Path, name: str, dtype: str) -> None:
    write_tensors(folder / "model.safetensors", {name: dtype})
    assert f"quantised ({name} is {dtype})" in refusal(folder)


def test_the_quantiser_s_own_file_is_enough(folder: Path) -> None:
    (folder / "quantize_config.json").write_text("{}")
    assert "quantised (quantize_config.json)" in refusal(folder)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "is empty"),
        ([".gitattributes"], "is empty"),
        (["config.json", "pytorch_model.bin"], "pickled weights (.bin)"),
        (["config.json", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "pickled weights (.bin)"),
        (["adapter_config.json", "adapter_model.bin"], "pickled adapter (.bin)"),
        (["adapter_config.json"], "no adapter_model.safetensors"),
        (["model_index.json"], "diffusers"),
        (["params.json", "consolidated.00.pth"], "original layout"),
        (["params.json", "consolidated.safetensors", "tekken.json"], "original layout"),
        (["README.md", "model.Q4_K_M.gguf"], "GGUF"),
        (["config.json", "tf_model.h5"], "TensorFlow"),
        (["config.json", "flax_model.msgpack"], "Flax"),
        (["config.json", "zero_to_fp32.py", "latest"], "DeepSpeed"),
        (["config.json", "model.bin", "vocabulary.json"], "another library"),
        (["config.json"], "no weights"),
        (["README.md"], "no config.json"),
        (["model.safetensors"], "no config.json"),
        (["config.json", "pytorch_model.bin", "model-00001-of-00002.safetensors"], "pickled"),
    ],
)
def test_other_files_are_named_with_what_to_do(files: list[str], words: str) -> None:
    with pytest.raises(BadInput, match="; ") as error:
        require_names(files, "m")
    assert words in str(error.value)


@pytest.mark.parametrize(
    "files",
    [
        ["config.json", "model.safetensors", "pytorch_model.bin", "model.onnx", "m.gguf"],
        ["config.json", "model.safetensors.index.json", "model-00001-of-00001.safetensors", "consolidated.safetensors"],
        ["adapter_config.json", "adapter_model.safetensors"],
        ["adapter_config.json", "adapter_model.safetensors", "training_args.bin"],
    ],
)
def test_other_formats_beside_a_whole_model_do_not_matter(files: list[str]) -> None:
    require_names(files, "m")


def test_the_header_gives_names_and_shapes(folder: Path) -> None:
    assert header(folder / "model.safetensors")["model.embed_tokens.weight"]["shape"] == [259, 64]
