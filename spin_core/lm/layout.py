"""Which layout a model takes, packed or padded, and the proof that its log-probs are those of a plain forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spin_core.lm.attention import set_attention, set_plain_attention, window_of
from spin_core.lm.blocks import ATTENTION
from spin_core.lm.logprobs import Batch, answer_logps, collate
from spin_core.lm.packing import Packed, pack
from spin_core.runtime.errors import BadInput

# model types for which the tests prove that packed log-probs and gradients are those of one sequence at a time
PACKED_ARCHITECTURES = (
    "apertus", "arcee", "cohere", "cohere2", "cwm", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm", "glm4",
    "gpt2", "gpt_neox", "granite", "helium", "hunyuan_v1_dense", "hyperclovax", "jais2", "llama", "ministral", "ministral3",
    "mistral", "nanochat", "olmo", "olmo2", "olmo3", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "starcoder2",
    "vaultgemma",
)  # fmt: skip
_TOLERANCE = 1e-3, 1e-4  # nats, and relative to the log-prob: fp32 rounds at a tenth of it, a wrong mask is off by far more
_SAMPLE_ROWS, _SAMPLE_PROMPT, _SAMPLE_ANSWER = 2, 24, 12  # a few thousandths of a second, even on a CPU
Sequences = Sequence[Sequence[int]]
Layout = Callable[[Sequences, Sequences], Batch | Packed]


@dataclass(frozen=True)
class Step:
    """How a model is scored and trained."""

    packed: bool  # each prompt once and no padding; else padded, by TRL's step in training
    why: str  # a line for people


def step_of(config: Any, longest: int, backend: str = "packed") -> Step:
    """The step of a model of this config where no prompt + answer has more than `longest` tokens.

    Raises BadInput where log-probs would depend on what else is in a batch, whatever its layout.
    """
    limit = _same_frequencies_up_to(config)
    if limit is not None and longest > limit:
        raise BadInput(
            f"{config.model_type}: its rotary frequencies change for the whole batch where a sequence has more than {limit:,} tokens; "
            f"the longest prompt + answer has {longest:,}",
            remedy="lower data.max_prompt_tokens or generation.max_new_tokens",
        )
    if backend == "trl":
        return Step(False, "padded, TRL's step: training.backend=trl")
    if config.model_type not in PACKED_ARCHITECTURES:
        return Step(False, f"padded, TRL's step: packing is not proven for {config.model_type}")
    window = window_of(config)
    if window is None:
        return Step(True, f"packed: proven for {config.model_type}")
    if longest <= window:
        return Step(True, f"packed: windows of {window:,} never bind (longest prompt + answer {longest:,})")
    return Step(True, f"packed: attention in windows of {window:,} (longest prompt + answer {longest:,})")


def _same_frequencies_up_to(config: Any) -> int | None:
    """Tokens up to which a sequence's rotary frequencies are the same in every batch; None: always."""
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    limits = [
        part["original_max_position_embeddings"] if part["rope_type"] == "longrope" else config.max_position_embeddings
        for part in (rope, *rope.values())  # of all layers, or a kind of layer
        if isinstance(part, dict) and part.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)


def choose_layout(model: Any, step: Step, pairs: Sequence[dict[str, Any]], attention: str = "sdpa", bf16: bool = False) -> Layout:
    """The layout of `step`, with the attention of `model`, just loaded, set to match.

    The beginnings of the first `pairs` are its proof: raises BadInput where their log-probs are not those of the model's own
    forward pass, eager, over each sequence alone, in fp32.
    """
    sequences = [
        (row["prompt_ids"][-_SAMPLE_PROMPT:], row[side][:_SAMPLE_ANSWER])
        for row in pairs[:_SAMPLE_ROWS]
        for side in ("real_ids", "generated_ids")
    ]
    problem = sequences and _problem(model, step.packed, [prompt for prompt, _ in sequences], [answer for _, answer in sequences])
    if problem:
        remedy = "set training.backend=trl" if step.packed else "take a model of another architecture"
        raise BadInput(f"{model.config.model_type}: log-probs are not those of its own forward pass: {problem}", remedy=remedy)
    if step.packed:
        set_attention(model, attention, bf16)
        return pack
    return collate


def _problem(model: Any, packed: bool, prompts: Sequences, answers: Sequences) -> str | None:
    """What is wrong with the log-probs of a layout; None if they are right. Sets the layout's attention, block by block."""
    own = model.config._attn_implementation
    try:
        with torch.no_grad():
            model.set_attn_implementation("eager")
            plain_B = torch.stack([_plain_logp(model, *sequence) for sequence in zip(prompts, answers, strict=True)])
            model.set_attn_implementation(ATTENTION if packed else own)
            if not packed:
                set_plain_attention(model)
            logp_B = answer_logps(model, (pack if packed else collate)(prompts, answers).to(model.device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # an architecture can refuse anything: arguments, positions, hidden states
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    off_B = (logp_B - plain_B).abs()
    if bool((off_B <= _TOLERANCE[0] + _TOLERANCE[1] * plain_B.abs()).all()):
        return None
    return f"off by {float(off_B.max()):.2g} nats"


def _plain_logp(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """From the logits of the model's own forward pass. The last token is not shown to it, so what looks ahead differs."""
    ids_1T = torch.tensor([[*prompt, *answer[:-1]]], device=model.device)
    logp_RV = model(input_ids=ids_1T).logits[0, len(prompt) - 1 :].float().log_softmax(-1)
    logp: Tensor = logp_RV.gather(1, torch.tensor(answer, device=model.device)[:, None]).sum()
    return logp
