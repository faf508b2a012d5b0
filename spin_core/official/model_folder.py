"""The output folder of an official training run: a model that a user's other programs load by its path."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from spin_core.runtime.errors import BadInput
from spin_core.store import MANIFEST

_ADAPTER = "adapter"  # the folder that a LoRA run's model artifact has beside the merged weights
# what `from_pretrained` looks for, and what a copy that was killed left
_MODEL_FILE = re.compile(
    r"(model|pytorch_model|adapter_model|consolidated|tf_model|flax_model)[\w.-]*\.(safetensors|bin|h5|msgpack|pth|json)"
    r"|(config|generation_config|adapter_config|quantization_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens)\.json"
    r"|(vocab|merges)\.(json|txt)|chat_template\.(jinja|json)|tokenizer\.model|sentencepiece\.bpe\.model|spiece\.model"
    r"|(pre)?processor_config\.json|\..+\.(safetensors|json|jinja|txt|model)\.\d+"
)


def copy_model(model: Path, out: Path) -> None:
    """Makes `out` the folder of this model and of no other: what an earlier one left there would be loaded with it.

    Files that are no model's stay. Until config.json, which goes first and comes last, the folder is not half of two models.
    Raises BadInput in one line for what the file system refuses.
    """
    try:
        _copy(model, out)
    except OSError as error:
        raise BadInput(
            f"output_dir {out}: {error.strerror or error}", remedy="mend it and run again; the model is trained already"
        ) from None


def _copy(model: Path, out: Path) -> None:
    names = [file.relative_to(model) for file in sorted(model.rglob("*")) if file.is_file() and file.name != MANIFEST]
    names.sort(key=lambda name: name == Path("config.json"))
    out.mkdir(parents=True, exist_ok=True)
    stale = [file for folder in (out, out / _ADAPTER) for file in folder.glob("*") if _MODEL_FILE.fullmatch(file.name)]
    new = {}
    for name in names:  # a LoRA run's adapter is in a folder of its own
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        new[target] = target.with_name(f".{target.name}.{os.getpid()}")
        shutil.copy(model / name, new[target])
    (out / "config.json").unlink(missing_ok=True)
    for file in stale:
        if file not in {*new, *new.values()}:
            file.unlink(missing_ok=True)
    for target, temporary in new.items():
        os.replace(temporary, target)
    with suppress(OSError):  # it has files of the user's
        (out / _ADAPTER).rmdir()
