"""Whether the packed forward and backward are those of one sequence at a time, on the device at hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from spin_core.lm.attention import disagreement
from spin_core.lm.blocks import ATTENTION
from spin_core.lm.kernels import KERNELS
from spin_core.lm.logprobs import answer_logps
from spin_core.lm.packing import pack

# what fp32 may be off: nats, and the gradient relative to its norm; bf16 three times as far as plain sequences in bf16 are
_FP32_LOGP, _FP32_GRADIENT, _BF16_FACTOR = 1e-3, 1e-4, 3.0
Found = tuple[Tensor, Tensor]  # log-probs [B], gradient [parameters], both fp32


def _sequences(count: int, longest: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and answers of `count` trees with one to three answers; lengths from one token on."""
    rng = random.Random(0)

    def ids(most: int) -> list[int]:
        return [rng.randrange(3, 900) for _ in range(rng.randint(1, most))]

    prompts: list[list[int]] = []
    answers: list[list[int]] = []
    for number in range(count):
        prompt, branches = ids(longest), [ids(longest) for _ in range(1 + number % 3)]
        prompts += [prompt] * len(branches)
        answers += branches
    return prompts, answers


def _model(device: torch.device) -> Any:
    torch.manual_seed(0)
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 4}
    # a wider start than usual: flat attention would hide a wrong mask
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=1000, initializer_range=0.06, **sizes)).float().to(device).eval()


def _found(model: Any, logps: Callable[[], Tensor]) -> Found:
    model.zero_grad()
    logp_B = logps()
    logp_B.sum().backward()
    return logp_B.detach().float(), torch.cat([p.grad.flatten().float() for p in model.parameters()])


def _one_by_one(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
    """Full logits of each sequence alone, by transformers' own attention."""
    model.set_attn_implementation("eager")
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.tensor([prompt + answer], device=model.device)
        logp_T = model(ids).logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        found.append(logp_T[len(prompt) - 1 :].sum())
    return torch.stack(found)


def check(device: torch.device, trees: int = 12, longest: int = 300) -> dict[str, Any]:
    """Errors of every form in fp32 and bf16 against plain sequences in fp32; raises SystemExit where one is too large."""
    model = _model(device)
    prompts, answers = _sequences(trees, longest)
    batch = pack(prompts, answers).to(device)

    def packed(attention: str) -> Tensor:
        model.set_attn_implementation(attention)
        return answer_logps(model, batch)

    right = _found(model, lambda: _one_by_one(model, prompts, answers))

    def error(found: Found) -> tuple[float, float]:
        return float((found[0] - right[0]).abs().max()), float((found[1] - right[1]).norm() / right[1].norm())

    errors = {"fp32 blocks": error(_found(model, lambda: packed(ATTENTION)))}
    problems = {kernel: disagreement(kernel, model.config, device, torch.bfloat16) for kernel in KERNELS}
    with torch.autocast(device.type, torch.bfloat16):
        errors["bf16 plain"] = error(_found(model, lambda: _one_by_one(model, prompts, answers)))
        errors["bf16 blocks"] = error(_found(model, lambda: packed(ATTENTION)))
        for kernel in [kernel for kernel, problem in problems.items() if problem is None]:
            errors[f"bf16 {kernel}"] = error(_found(model, lambda: packed(KERNELS[kernel])))  # noqa: B023, called at once
    for name, (logp, gradient) in errors.items():
        print(f"exactness  {name:12s} log-prob ≤ {logp:.2e} nats, gradient {gradient:.2e} relative", flush=True)
    for kernel, problem in problems.items():
        print(f"exactness  {kernel}: {problem or 'agrees with attention block by block'}", flush=True)
    allowed = {name: tuple(_BF16_FACTOR * value for value in errors["bf16 plain"]) for name in errors if name.startswith("bf16")}
    allowed["fp32 blocks"] = (_FP32_LOGP, _FP32_GRADIENT)
    wrong = [name for name, found in errors.items() if any(not e <= most for e, most in zip(found, allowed[name], strict=True))]
    if wrong:
        raise SystemExit(f"not exact on {device}: {', '.join(wrong)}")
    kernels = {kernel: problem or "exact" for kernel, problem in problems.items()}
    return {"errors": {name: [float(f"{e:.2e}") for e in found] for name, found in errors.items()}, "kernels": kernels}
