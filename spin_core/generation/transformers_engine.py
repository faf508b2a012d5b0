"""The engine without an extra install: `transformers.generate` in a child process. Slow; for small models and few rows."""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Answer, Ended, OnAnswer, Prompt, Sampler
from spin_core.generation.sampling import generation_options
from spin_core.runtime import devices, memory, process

_BATCH = 32
Asked = tuple[list[int], int, bool, bool]  # a prompt's ids, a seed, whether the log-prob is wanted, whether nothing is drawn


class TransformersEngine:
    """Loads the model anew for every call, in a child that frees its memory when it ends."""

    address = None
    node = where = ""
    window = 1  # one shard at a time: each is a process with the whole model

    def __init__(self, sampler: Sampler, log: Path, group: Sequence[devices.Device], part: int, parts: int, ended: Ended) -> None:
        model = sampler.model.path
        self._model, self._settings, self._log, self._group = model, sampler.settings, log, group
        if not group:
            memory.require_memory(ram(memory.weight_bytes(model, 4)), "sampling with this model", ended)
        self._hold = devices.hold(group, ended, purpose="sampling")

    def alive(self) -> bool:
        """Always: there is nothing to keep alive between calls."""
        return True

    def close(self) -> None:
        """Gives the GPU back; nothing is left running."""
        self._hold.release()

    def sample(self, prompts: Sequence[Prompt], ends: Ends, on_answer: OnAnswer) -> list[Answer]:
        """See `Engine.sample`."""
        settings = self._settings
        with tempfile.TemporaryDirectory() as folder:
            job: dict[str, Any] = {"model": str(self._model), "prompts": list(map(asdict, prompts)), "out": f"{folder}/answers.json"}
            job |= {"temperature": settings.temperature, "top_p": settings.top_p, "options": generation_options(settings, ends)}
            module, env = "spin_core.generation.transformers_engine", devices.environment(self._group)
            process.run_job(module, job, self._log, name="sampling with transformers", env=env, fds=self._hold.fds)
            answers = [Answer(**row) for row in json.loads(Path(job["out"]).read_text())]
        for number, answer in enumerate(answers, 1):
            on_answer(number, len(answer.ids))
        return answers


def ram(weights: int) -> int:
    """Bytes of memory that a call takes without a GPU, with so many of weights in fp32."""
    return weights + 2**30


class _Draw:
    """A logits processor that leaves each row of a batch one token, drawn with a random sequence of the row's own.

    One uniform number a token, on the scale of the cumulated probabilities: what else is in the batch has no part in it.
    """

    def __init__(self, asked: Sequence[Asked], temperature: float, top_p: float) -> None:
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        self._rows = [random.Random(seed) for _, seed, _, _ in asked]
        self._wanted = any(logp for _, _, logp, _ in asked)
        self._greedy = [greedy for _, _, _, greedy in asked]
        warpers = [TemperatureLogitsWarper(float(temperature))] if temperature != 1.0 else []
        self._warp = LogitsProcessorList([*warpers, *([TopPLogitsWarper(top_p)] if top_p < 1.0 else [])])
        self.logps: list[list[float]] = []  # of the drawn tokens, a list a step

    def __call__(self, ids_BT: Any, logits_BV: Any) -> Any:
        """Scores that are 0 for the drawn token and −inf for the others."""
        import torch

        # a GPU sums on several threads; its double precision moves a boundary by far less than the logits' own rounding
        mass_BV = self._warp(ids_BT, logits_BV).softmax(-1, dtype=torch.float64).cumsum(-1)
        uniform_B1 = torch.tensor([[row.random()] for row in self._rows], dtype=torch.float64, device=logits_BV.device)
        token_B1 = torch.searchsorted(mass_BV, uniform_B1 * mass_BV[:, -1:], right=True).clamp(max=logits_BV.shape[1] - 1)
        if any(self._greedy):
            greedy_B1 = torch.tensor(self._greedy, device=logits_BV.device)[:, None]
            token_B1 = torch.where(greedy_B1, logits_BV.argmax(-1, keepdim=True), token_B1)
        if self._wanted:
            self.logps.append(logits_BV.log_softmax(-1).gather(1, token_B1)[:, 0].tolist())
        return torch.full_like(logits_BV, -torch.inf).scatter(1, token_B1, 0.0)


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
    asked = [(p["ids"], p["seed"] + sample, p["logp"], p["greedy"]) for p in job["prompts"] for sample in range(p["samples"])]
    answers = []
    for start in range(0, len(asked), _BATCH):
        batch = asked[start : start + _BATCH]
        width = max(len(ids) for ids, *_ in batch)
        ids_BT = torch.tensor([[pad] * (width - len(ids)) + ids for ids, *_ in batch], device=device)
        mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, *_ in batch], device=device)
        draw = _Draw(batch, job["temperature"], job["top_p"])
        with torch.no_grad():
            out = model.generate(input_ids=ids_BT, attention_mask=mask_BT, generation_config=options, logits_processor=[draw])
        for number, row in enumerate(out[:, width:].tolist()):
            stop = next((place for place, token in enumerate(row) if token in ends), None)
            text = tokenizer.decode(row[:stop], skip_special_tokens=True).strip()
            whole = row if stop is None else row[: stop + 1]
            logp = math.fsum(step[number] for step in draw.logps[: len(whole)]) if batch[number][2] else None
            answers.append({"ids": whole, "finish_reason": "length" if stop is None else "stop", "text": text, "logp": logp})
    Path(job["out"]).write_text(json.dumps(answers))


if __name__ == "__main__":
    process.job_main(_work)
