"""What a model's folder holds, judged by names, first bytes and headers: no torch, no weight is read.

Most folders that cannot be imported say so themselves: a pointer where git-lfs was missing, a download that was cut, another
library's files, rounded weights. Each gets one line with its cause and what to do, before anything is loaded.
"""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spin_core.runtime.errors import BadInput

ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
_POINTER = b"version https://git-lfs"
_RESAVE = "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder), and the tokenizer's likewise"
# what other libraries leave: (file, what it is, what to do); the first that is found is named
_OTHERS = (
    (
        "pytorch_model*.bin",
        "pickled weights (.bin), which can run code when they are read",
        f"where you trust them, convert once: {_RESAVE}",
    ),
    (
        "adapter_model.bin",
        "a pickled adapter (.bin), which can run code when it is read",
        "save it again with a newer peft, as safetensors",
    ),
    ("*.distcp", "a sharded training checkpoint of torch", "merge it with `accelerate merge-weights`"),
    ("zero_to_fp32.py", "a training checkpoint of DeepSpeed", "run its zero_to_fp32.py with --safe_serialization"),
    ("*zero_pp_rank_*", "a training checkpoint of DeepSpeed", "run zero_to_fp32.py with --safe_serialization"),
    ("model_index.json", "a diffusers pipeline", "name a language model"),
    ("consolidated*", "weights in the original layout of their authors", "take the folder that was converted for transformers"),
    ("*.gguf", "GGUF files", "name one of them: model.name: …/FILE.gguf"),
    ("*.nemo", "a NeMo model", "convert it to transformers' layout"),
    ("*.onnx", "an ONNX model", "name the folder it was exported from"),
    ("*.h5", "TensorFlow weights", "load them with an older transformers (from_tf=True), and save_pretrained"),
    ("*.msgpack", "Flax weights", "load them with an older transformers (from_flax=True), and save_pretrained"),
    ("*.ckpt", "a training checkpoint of another library", "export it to transformers' layout"),
    ("*.pth", "pickled weights of another library", "export them to transformers' layout"),
    ("*.pt", "pickled weights of another library", "export them to transformers' layout"),
    ("*.bin", "weights of another library", "export them to transformers' layout, as safetensors"),
    ("*.npz", "weights of another library", "export them to transformers' layout"),
)
_ROUNDED = ("qweight", "qzeros", "weight_packed", "absmax", "quant_state", "weight_scale", "weight_scale_inv", "SCB", "_blocks")
_ROUNDED_TYPES = {"I8", "U8", "I32", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2"}
READ = {".safetensors", ".json", ".jinja", ".model", ".txt"}  # endings of the files that an import reads
_NEEDED_JSON = {ADAPTER, INDEX, "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "vocab.json"}
_QUANTISERS = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder; BadInput where it is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadInput(f"{path} cannot be read ({' '.join(str(error).split())[:120]})", remedy="download it again") from None
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds no JSON object", remedy="download it again")
    return found


def require_names(names: Iterable[str], where: str) -> None:
    """Refuses a folder or repository by its top-level file names alone: nothing in it, or files of another library only."""
    plain = sorted(name for name in names if "/" not in name and not name.startswith("."))
    if not plain:
        raise BadInput(f"the model {where} is empty", remedy="name a folder that save_pretrained wrote, or a hub id")
    if ADAPTER in plain and WEIGHTS not in plain and INDEX not in plain:
        if "adapter_model.safetensors" in plain:
            return
    elif {"config.json", WEIGHTS} <= {*plain} or {"config.json", INDEX} <= {*plain}:
        return
    for pattern, what, remedy in _OTHERS:
        if found := fnmatch.filter(plain, pattern):
            raise BadInput(f"the model {where} holds {what}: {found[0]}", remedy=remedy)
    if ADAPTER in plain:
        raise BadInput(f"the adapter {where} has no adapter_model.safetensors", remedy="save it again with save_pretrained")
    weights = fnmatch.filter(plain, "*.safetensors")
    if "config.json" not in plain:
        raise BadInput(f"the model {where} has no config.json", remedy="name a folder that save_pretrained wrote, or a hub id")
    if not weights:
        raise BadInput(f"the model {where} has no weights: no .safetensors file is in it", remedy="download it again, whole")
    raise BadInput(
        f"the model {where} holds {weights[0]} but neither {WEIGHTS} nor {INDEX}, which says what is where",
        remedy="download it again, whole",
    )


def require_whole(folder: Path, where: str) -> None:
    """Refuses a folder whose files are pointers, cut, missing or rounded."""
    require_names((file.name for file in folder.iterdir() if file.is_file()), where)
    for file in sorted(folder.iterdir()):
        if file.is_file() and file.suffix in READ:
            _require_content(file)
    if (folder / "config.json").is_file():
        _require_unrounded_config(read_json(folder / "config.json"), where)
    for name in _QUANTISERS:
        if (folder / name).is_file():
            raise _rounded(where, name)
    for file in weight_files(folder):
        _require_unrounded(file, where)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, as transformers chooses them; BadInput for a shard that is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        return [folder / "adapter_model.safetensors"]
    named = read_json(folder / INDEX).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise BadInput(f"{folder / INDEX} names no weights", remedy="download it again")
    files = [folder / Path(name).name for name in sorted({*named.values()})]
    absent = [file for file in files if not file.is_file()]
    if absent:
        raise BadInput(
            f"{len(absent)} of {len(files)} weight files are missing, first {absent[0]}", remedy="download the model again, whole"
        )
    return files


def header(file: Path) -> dict[str, Any]:
    """Name → dtype, shape and data_offsets of a safetensors file; BadInput where it is none, or was cut."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > size - 8:
            raise BadInput(f"{file} is cut or no safetensors file ({size:,} bytes)", remedy="download it again")
        try:
            tensors: dict[str, Any] = json.loads(handle.read(length))
            tensors.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise BadInput(f"{file} is no safetensors file: its header cannot be read", remedy="download it again") from None
    if size != 8 + length + end:
        raise BadInput(f"{file} has {size:,} bytes, its header asks for {8 + length + end:,}: the file was cut", remedy="download it again")
    return tensors


def _require_content(file: Path) -> None:
    """Refuses a pointer in a file's place, and JSON that is none (cut, or a page that says "not found")."""
    with file.open("rb") as handle:
        start = handle.read(64)
    if start.startswith(_POINTER):
        raise BadInput(
            f"{file} is a pointer of git-lfs, not the file itself", remedy="run `git lfs install; git lfs pull` there, or download it again"
        )
    if file.name in _NEEDED_JSON:
        read_json(file)


def _require_unrounded_config(config: Mapping[str, Any], where: str) -> None:
    parts = [config, *(part for part in config.values() if isinstance(part, dict))]
    for part in parts:
        for key in ("quantization_config", "compression_config", "quantization"):
            found = part.get(key)
            if isinstance(found, dict) and found:
                raise _rounded(where, f"{found.get('quant_method') or key}")


def _require_unrounded(file: Path, where: str) -> None:
    for name, entry in header(file).items():
        if name.endswith(_ROUNDED) or (entry.get("dtype") in _ROUNDED_TYPES and name.endswith("weight")):
            raise _rounded(where, f"{name} is {entry.get('dtype')}")


def _rounded(where: str, how: str) -> BadInput:
    return BadInput(
        f"the model {where} is quantised ({how}), and rounded weights cannot be trained",
        remedy="name the model that it was made from (training.lora.quantize: 4bit rounds while training)",
    )
