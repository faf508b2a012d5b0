"""Every decoder that transformers has, tiny and random: are its log-probs those of a plain forward pass over each sequence alone?

    python -m bench.sweep                            # all kinds of bench.kinds, about a minute
    python -m bench.sweep "mistral window 3" mamba   # some

For each kind, in fp32 on the CPU: which step it gets, and how far its log-probs and gradients are off in the layout of that step;
where that is the padded one, also how far `model(...)` over the padded batch is off, since TRL trains with that, and how far the
packed layout would be. A kind is exact or refused with one line that names it; ends with one JSON line, and fails where it is neither.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from bench.facts import commit, versions
from bench.kinds import KINDS, REFUSED, model_of
from spin_core.lm.blocks import ATTENTION
from spin_core.lm.layout import choose_layout, step_of
from spin_core.lm.logprobs import answer_logps, collate
from spin_core.lm.packing import pack
from spin_core.runtime.errors import BadInput

_LOGP, _GRADIENT = 1e-5, 1e-4  # relative to max(1, |log-prob|) and to the gradient's norm
_SEEN = 1e-3
_NUMBERS = ("log-prob", "gradient", "prompt", "trl")
_LENGTHS = [(12, 9, 4), (1, 5, 1), (4, 2, 11), (7, 13, 3)]  # of a prompt and its two answers


def make_pairs() -> list[dict[str, list[int]]]:
    """Pairs of random tokens, as the stages hold them."""
    torch.manual_seed(1)
    names = ("prompt_ids", "real_ids", "generated_ids")
    return [{name: torch.randint(3, 99, (size,)).tolist() for name, size in zip(names, sizes, strict=True)} for sizes in _LENGTHS]


def sequences_of(pairs: list[dict[str, list[int]]]) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and answers, the real ones first."""
    return [pair["prompt_ids"] for pair in pairs] * 2, [pair[side] for side in ("real_ids", "generated_ids") for pair in pairs]


def one_by_one(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
    """log p(answer | prompt) [B] from full logits of one unpadded sequence at a time."""
    return torch.stack([_summed(model(input_ids=torch.tensor([p + a])).logits[0], p, a) for p, a in zip(prompts, answers, strict=True)])


def padded_forward(model: Any, prompts: list[list[int]], answers: list[list[int]]) -> Tensor:
    """The same from one padded batch, as TRL takes it."""
    batch = collate(prompts, answers)
    logits_BTV = model(input_ids=batch.ids_BT, attention_mask=batch.mask_BT, use_cache=False).logits
    return torch.stack([_summed(*each) for each in zip(logits_BTV, prompts, answers, strict=True)])


def _summed(logits_TV: Tensor, prompt: list[int], answer: list[int]) -> Tensor:
    logp_RV = logits_TV[len(prompt) - 1 : len(prompt) + len(answer) - 1].float().log_softmax(-1)
    return logp_RV.gather(1, torch.tensor(answer)[:, None]).sum()


def gradient(model: Any, logp_B: Tensor) -> Tensor:
    """Of a weighted sum of the log-probs, over all weights."""
    model.zero_grad()
    (logp_B * torch.linspace(0.5, -1.5, len(logp_B))).sum().backward()
    return torch.cat([weight.grad.flatten() for weight in model.parameters() if weight.grad is not None])


def off(found_B: Tensor, right_B: Tensor) -> float:
    """The largest error, relative to max(1, |log-prob|)."""
    return float(((found_B - right_B).abs() / right_B.abs().clamp(min=1.0)).max())


def examine(name: str) -> dict[str, Any]:
    """What becomes of a kind: its step, and its errors or the line that refuses it."""
    pairs = make_pairs()
    prompts, answers = sequences_of(pairs)
    model = model_of(name)
    given = model.config._attn_implementation
    model.set_attn_implementation("eager")  # SDPA leaves soft caps out
    plain_B = one_by_one(model, prompts, answers)
    plain_gradient = gradient(model, plain_B)
    plain_B = plain_B.detach()
    with torch.no_grad():
        other_B = one_by_one(model, [[98 - prompt[0], *prompt[1:]] for prompt in prompts], answers)
    seen = off(other_B, plain_B)  # where a token of the prompt hardly matters, a wrong mask would not show
    model.set_attn_implementation(given)
    try:
        step = step_of(model.config, max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True)))
        layout = choose_layout(model, step, pairs)
    except BadInput as error:
        return {"layout": "refused", "why": str(error), "ok": name in REFUSED and str(error).startswith(model.config.model_type)}
    found_B = answer_logps(model, layout(prompts, answers))
    found_gradient = gradient(model, found_B)
    found: dict[str, Any] = {"layout": "packed" if step.packed else "padded", "why": step.why, "log-prob": off(found_B.detach(), plain_B)}
    found["gradient"] = float((found_gradient - plain_gradient).norm() / plain_gradient.norm())
    found["prompt"] = seen
    found["ok"] = seen >= _SEEN and found["log-prob"] <= _LOGP and found["gradient"] <= _GRADIENT
    if not step.packed:
        with torch.no_grad():
            found["trl"] = off(padded_forward(model, prompts, answers), plain_B)
            found["ok"] &= found["trl"] <= _LOGP
            found["if packed"] = _attempt(lambda: _if_packed(model, prompts, answers, plain_B))
    return found


def _if_packed(model: Any, prompts: list[list[int]], answers: list[list[int]], plain_B: Tensor) -> float:
    model.set_attn_implementation(ATTENTION)
    return off(answer_logps(model, pack(prompts, answers)), plain_B)


def _attempt(compute: Callable[[], float]) -> str:
    try:
        return f"{compute():.1e}"
    except Exception as error:  # an architecture can refuse the layout in any way
        return f"{type(error).__name__}: {' '.join(str(error).split())[:60]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", metavar="KIND", help="names of bench.kinds; all by default")
    options = parser.parse_args()
    logging.set_verbosity_error()
    started = time.perf_counter()
    table = {}
    for name in options.kinds or KINDS:
        found = table[name] = examine(name)
        numbers = (f"{key} {found[key]:.1e}" for key in _NUMBERS if key in found)
        shown = "  ".join((*numbers, *(f"{key} {found[key]}" for key in ("if packed",) if key in found))) or found["why"]
        print(f"{'ok  ' if found['ok'] else 'BAD '} {name:26s} {found['layout']:8s} {shown}", flush=True)
    bad = [name for name, found in table.items() if not found["ok"]]
    layouts = [found["layout"] for found in table.values()]
    worst = {key: max((found[key] for found in table.values() if key in found), default=0.0) for key in ("log-prob", "gradient", "trl")}
    result = {"bench": "sweep", "kinds": len(table), **{layout: layouts.count(layout) for layout in ("packed", "padded", "refused")}}
    result |= {"worst": {key: float(f"{value:.1e}") for key, value in worst.items()}, "bad": bad}
    result |= {"versions": versions("torch", "transformers"), "commit": commit()}
    result |= {"date": time.strftime("%Y-%m-%d"), "seconds": round(time.perf_counter() - started)}
    print(json.dumps(result))
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
