"""The child that writes a model in another dtype, with the user's own tokenizer: imports torch, so the command never does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from spin_core.encoding.template import rendering_options
from spin_core.runtime.errors import BadInput
from spin_core.runtime.process import job_main

_SHARD = "5GB"  # files of a size that every hub and file system takes
_FIXED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_TALKS = (
    [{"role": "user", "content": "Which word? \n 日本 naïve 1,234.5"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b c"}, {"role": "user", "content": "d"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a"}],
)


def _work(job: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    out, dtype = Path(job["out"]), {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[job["dtype"]]
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    if dtype is torch.float16 and any(not bool(part.isfinite().all()) for part in model.parameters()):
        raise BadInput("fp16 cannot hold these weights: some are over 65,504", remedy="take --dtype bf16")
    tokenizer, source = _tokenizer(job, out)
    ids: Any = model.generation_config
    model.generation_config = GenerationConfig(
        bos_token_id=ids.bos_token_id,
        eos_token_id=job["ends"] if len(job["ends"]) > 1 else job["ends"][0],
        pad_token_id=ids.pad_token_id if ids.pad_token_id is not None else tokenizer.pad_token_id,
        **job["advice"],
    )
    model.save_pretrained(out, max_shard_size=_SHARD)
    for file in out.glob("*.safetensors"):  # written for their owner alone; others are to have them
        shutil.copymode(out / "config.json", file)
    told = {"parameters": model.num_parameters(), "architecture": type(model).__name__, "tokenizer": source}
    Path(job["told"]).write_text(json.dumps(told))


def _tokenizer(job: dict[str, Any], out: Path) -> tuple[Any, str]:
    """Writes the user's own files where they make the tokenizer that the model was trained with, else those of the store."""
    from transformers import AutoTokenizer

    stored: Any = AutoTokenizer.from_pretrained(job["model"])
    if job["own"]:
        names = _copy(Path(job["own"]), out, {*_FIXED, *type(stored).vocab_files_names.values()})
        if job["template"]:
            (out / "chat_template.jinja").write_text(job["template"], encoding="utf-8")
        try:
            found: Any = AutoTokenizer.from_pretrained(out, local_files_only=True)
            if _alike(found, stored, job["kwargs"]):
                return found, "own"
        except Exception as error:  # a tokenizer's library raises what it likes; the stored one is known to load
            print(f"the user's own tokenizer files do not load by themselves: {error}", flush=True)
        for name in {*names, "chat_template.jinja"}:
            (out / name).unlink(missing_ok=True)
    stored.save_pretrained(out)
    return stored, "stored"


def _copy(folder: Path, out: Path, wanted: set[str]) -> list[str]:
    names = [name for name in sorted(wanted) if (folder / name).is_file()]
    names += [f"additional_chat_templates/{file.name}" for file in folder.glob("additional_chat_templates/*.jinja")]
    for name in names:
        (out / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(folder / name, out / name)
    return names


def _alike(one: Any, other: Any, kwargs: dict[str, Any]) -> bool:
    """Whether two tokenizers give the same ids to texts and to conversations."""
    if one.get_vocab() != other.get_vocab() or one.eos_token_id != other.eos_token_id:
        return False
    options = {**rendering_options(kwargs), "tokenize": True, "return_dict": False}
    for talk in _TALKS:
        text = talk[0]["content"]
        if one(text)["input_ids"] != other(text)["input_ids"]:
            return False
        for prompt in (True, False):
            if _said(one, talk, prompt, options) != _said(other, talk, prompt, options):
                return False
    return True


def _said(tokenizer: Any, talk: list[dict[str, str]], prompt: bool, options: dict[str, Any]) -> Any:
    try:
        return tokenizer.apply_chat_template(talk, add_generation_prompt=prompt, **options)
    except Exception as error:  # a template refuses by raising whatever it likes
        return type(error).__name__


if __name__ == "__main__":
    job_main(_work)
