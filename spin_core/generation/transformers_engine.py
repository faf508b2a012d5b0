"""The engine without an extra install: `transformers.generate` in a child process. Slow; for small models and few rows."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Answer, Ended, OnAnswer, Sampler
from spin_core.generation.sampling import generation_options
from spin_core.runtime import devices, memory, process

_BATCH = 32


class TransformersEngine:
    """Loads the model anew for every call, in a child that frees its memory when it ends."""

    window = 1  # one shard at a time: each is a process with the whole model

    def __init__(self, sampler: Sampler, log: Path, group: Sequence[devices.Device], part: int, parts: int, ended: Ended) -> None:
        model = sampler.model.path
        self._model, self._settings, self._log, self._group = model, sampler.settings, log, group
        if not group:
            memory.require_memory(memory.weight_bytes(model, 4) + 2**30, "sampling with this model", ended)
        self._hold = devices.hold(group, ended, purpose="sampling")

    def alive(self) -> bool:
        """Always: there is nothing to keep alive between calls."""
        return True

    def close(self) -> None:
        """Gives the GPU back; nothing is left running."""
        self._hold.release()

    def sample(self, prompts: Sequence[Sequence[int]], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        """See `Engine.sample`."""
        settings = self._settings
        with tempfile.TemporaryDirectory() as folder:
            job: dict[str, Any] = {"model": str(self._model), "prompts": [list(p) for p in prompts], "out": f"{folder}/answers.json"}
            job["options"] = generation_options(settings.max_new_tokens, settings.temperature, settings.top_p, ends.ids)
            module, env = "spin_core.generation.transformers_engine", devices.environment(self._group)
            process.run_job(module, job, self._log, name="sampling with transformers", env=env, fds=self._hold.fds)
            answers = [Answer(**row) for row in json.loads(Path(job["out"]).read_text())]
        for number, answer in enumerate(answers, 1):
            on_answer(number, len(answer.ids))
        return answers


def _work(job: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from spin_core.lm.attention import set_plain_attention
    from spin_core.lm.device import compute_device

    device = compute_device()
    tokenizer: Any = AutoTokenizer.from_pretrained(job["model"])
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype="auto").to(device).eval()
    set_plain_attention(model)
    options = GenerationConfig(**job["options"])
    model.generation_config = options  # generate() fills what an option leaves open from the model's own
    ends, pad = set(options.eos_token_id), options.pad_token_id
    answers = []
    for start in range(0, len(job["prompts"]), _BATCH):
        prompts = job["prompts"][start : start + _BATCH]
        width = max(map(len, prompts))
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        with torch.no_grad():
            out = model.generate(input_ids=ids, attention_mask=mask, generation_config=options)
        for row in out[:, width:].tolist():
            stop = next((place for place, token in enumerate(row) if token in ends), None)
            text = tokenizer.decode(row[:stop], skip_special_tokens=True).strip()
            whole = row if stop is None else row[: stop + 1]
            answers.append({"ids": whole, "finish_reason": "length" if stop is None else "stop", "text": text})
    Path(job["out"]).write_text(json.dumps(answers))


if __name__ == "__main__":
    process.job_main(_work)
