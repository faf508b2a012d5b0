"""What p_θ is: every field that an engine's sampling knows, with the recipe's value or the neutral one.

An engine fills a field that it is not sent from the model's generation_config.json or from the server's own defaults, and a
repetition penalty or a top-k there would have the opponent answer from another distribution than the one that is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spin_core.encoding.ends import Ends
from spin_core.recipe import GenerationSettings


def request_fields(settings: GenerationSettings, ends: Ends) -> dict[str, Any]:
    """The fields of a vLLM completion request. It stops on the ends of turn alone: with `ignore_eos` a server adds none of its own."""
    return {
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "length_penalty": 1.0,
        "logit_bias": None,
        "allowed_token_ids": None,
        "bad_words": [],
        "min_tokens": 0,
        "n": 1,
        "use_beam_search": False,
        "watermarking": False,
        "seed": None,  # vLLM's CPU build can crash on one
        "stop": [],
        "stop_token_ids": ends.ids,
        "ignore_eos": True,
        "include_stop_str_in_output": False,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
        "echo": False,
        "stream": False,
        "return_token_ids": True,
    }


def generation_options(max_new_tokens: int, temperature: float, top_p: float, ends: Sequence[int]) -> dict[str, Any]:
    """The same as options of a transformers GenerationConfig, which has to take the place of the model's own.

    A field that is None is filled from the model's, so even the neutral ones are spelled out.
    """
    return {
        "max_new_tokens": max_new_tokens,
        "min_new_tokens": 0,
        "do_sample": True,
        "num_beams": 1,
        "num_return_sequences": 1,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": 0,
        "min_p": None,
        "typical_p": 1.0,
        "epsilon_cutoff": 0.0,
        "eta_cutoff": 0.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "eos_token_id": list(ends),
        "pad_token_id": ends[0],
    }


def fault(ids: Sequence[int], finish_reason: str, limit: int, ends: Ends) -> str | None:
    """What is wrong with an answer that keeps to other rules than it was sent, or None."""
    if any(token in ends.ids for token in ids[:-1]):
        return "it went on after an end of turn"
    if finish_reason == "stop" and ids[-1:] and ids[-1] not in ends.ids:
        return f"it stopped at token {ids[-1]}, which ends no turn"
    if finish_reason == "length" and len(ids) < limit:
        return f"it cut an answer at {len(ids)} tokens, not at generation.max_new_tokens={limit}"
    return None
