"""What p_θ is: every field that an engine's sampling knows, with the recipe's value or the neutral one.

An engine fills a field that it is not sent from the model's generation_config.json or from the server's own defaults, and a
repetition penalty or a top-k there would have the opponent answer from another distribution than the one that is trained.
"""

from __future__ import annotations

import hashlib
from typing import Any

from spin_core.encoding.ends import Ends
from spin_core.generation.engine import Prompt
from spin_core.recipe import GenerationSettings


def seed_of(seed: int, row_id: str, player: int) -> int:
    """The seed of a player's first answer to a row, below 2^62; sample k has this + k, as vLLM has it for n answers of a request.

    `seed` is the recipe's, `player` is t of θ_t. So an answer's random numbers are its own, whatever is sampled beside it.
    """
    digest = hashlib.sha256(f"{seed}/{row_id}/{player}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 2  # vLLM takes 63 bits, and k has to fit in, too


def request_fields(settings: GenerationSettings, ends: Ends, prompt: Prompt) -> dict[str, Any]:
    """The fields of a vLLM completion request. It stops on the ends of turn alone: with `ignore_eos` a server adds none of its own."""
    return {
        "max_tokens": settings.max_new_tokens,
        "temperature": 0.0 if prompt.greedy else settings.temperature,
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
        "n": prompt.samples,
        "use_beam_search": False,
        "watermarking": False,
        "seed": prompt.seed,
        "logprobs": 0 if prompt.logp else None,  # 0: those of the sampled tokens alone
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


def generation_options(settings: GenerationSettings, ends: Ends) -> dict[str, Any]:
    """The same as options of a transformers GenerationConfig, which has to take the place of the model's own.

    A field that is None is filled from the model's, so even the neutral ones are spelled out. Temperature, nucleus and draw are
    the engine's own: transformers draws for a whole batch at once.
    """
    return {
        "max_new_tokens": settings.max_new_tokens,
        "min_new_tokens": 0,
        "do_sample": False,
        "num_beams": 1,
        "num_return_sequences": 1,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "eos_token_id": list(ends.ids),
        "pad_token_id": ends.ids[0],
    }


def fault(ids: list[int], finish_reason: str, limit: int, ends: Ends) -> str | None:
    """What is wrong with an answer that keeps to other rules than it was sent, or None."""
    if any(token in ends.ids for token in ids[:-1]):
        return "it went on after an end of turn"
    if finish_reason == "stop" and ids[-1:] and ids[-1] not in ends.ids:
        return f"it stopped at token {ids[-1]}, which ends no turn"
    if finish_reason == "length" and len(ids) < limit:
        return f"it cut an answer at {len(ids)} tokens, not at generation.max_new_tokens={limit}"
    return None
