"""The child that converts a model: imports torch, so the flow process never does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spin_core.runtime.errors import BadInput
from spin_core.runtime.process import job_main


def convert(job: dict[str, Any]) -> None:
    """Loads model and tokenizer and saves both as safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = Path(job["source"])
    gguf = source.suffix == ".gguf"
    where = source.parent if gguf else job["source"]
    options: dict[str, Any] = {"gguf_file": source.name} if gguf else {"revision": job["revision"] or "main"}
    options["trust_remote_code"] = job["trust"]
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32 if gguf else "auto", **options)
        tokenizer: Any = AutoTokenizer.from_pretrained(where, **options)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"the model {job['source']} cannot be loaded: {' '.join(str(error).split())[:300]}", remedy="check model.name"
        ) from None
    if gguf:  # save_pretrained refuses a model that still carries its quantizer
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    model.save_pretrained(job["out"])
    tokenizer.save_pretrained(job["out"])


if __name__ == "__main__":
    job_main(convert)
