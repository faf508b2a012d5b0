"""What a model can be asked for, read from its config.json alone: no torch, so the flow process may call it.

A model has a row in its embedding for every token id, and most have a last position. Beyond either there is no answer, only an
IndexError, or a rotary angle that was never trained; so both are compared with the recipe before anything is sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from spin_core.players.files import read_json
from spin_core.runtime.errors import BadInput

_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")  # llama, gpt2, mpt, others
_TEXT_PARTS = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")
# rope kinds whose published length is the scaled one already, as vLLM reads them too
_SCALED = {"default", "mrope", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "proportional"}
_UNBOUNDED = {"bloom", "mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"}  # alibi and recurrences have no last position


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config that has several, or the config itself."""
    for name in _TEXT_PARTS:
        if isinstance(found := config.get(name), dict):
            return text_part(found)
    return config


def positions(config: Mapping[str, Any]) -> int | None:
    """The most tokens, prompt and answer together, that a model of this config.json takes; None where nothing bounds them.

    A sliding window is no bound: a token sees less, but there may be more of them. Positions that rope scaling adds count.
    """
    text = text_part(config)
    alibi = text.get("alibi") or (text.get("attn_config") or {}).get("alibi")
    if alibi or text.get("model_type") in _UNBOUNDED:
        return None
    named = [int(text[name]) for name in _POSITIONS if isinstance(text.get(name), (int, float)) and text[name] > 0]
    if not named:
        return None
    return int(min(named) * _stretch(text))


def _stretch(text: Mapping[str, Any]) -> float:
    """How much rope scaling adds to the length that config.json names."""
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    kinds = [part for part in rope.values() if isinstance(part, dict)] or [rope]  # gemma-3 has one a kind of layer
    if "gemma3" in str(text.get("model_type")):
        return 1.0
    factors = [part.get("factor") for part in kinds if part.get("rope_type", part.get("type", "default")) not in _SCALED]
    return max([1.0, *(float(factor) for factor in factors if factor)])


def require_positions(model: Path, max_prompt_tokens: int, max_new_tokens: int) -> int:
    """The tokens that prompt and answer may have together; BadInput where the model has not as many positions."""
    config = read_json(model / "config.json")
    most, asked = positions(config), max_prompt_tokens + max_new_tokens
    if most is None or asked <= most:
        return asked
    ways = []
    if most > max_new_tokens:
        ways.append(f"data.max_prompt_tokens to {most - max_new_tokens}")
    if most > max_prompt_tokens:
        ways.append(f"generation.max_new_tokens to {most - max_prompt_tokens}")
    raise BadInput(
        f"data.max_prompt_tokens={max_prompt_tokens} and generation.max_new_tokens={max_new_tokens} make {asked} tokens, "
        f"and this {text_part(config).get('model_type')} has {most} positions",
        remedy=f"lower {' or '.join(ways) or f'both: together at most {most}'}",
    )


def rows(model: Path) -> int | None:
    """The rows of the embedding that config.json names: token ids go from 0 to this less one."""
    found = text_part(read_json(model / "config.json")).get("vocab_size")
    return found if isinstance(found, int) else None


def first_beyond(ids: Iterable[int], count: int) -> int | None:
    """The first of `ids` for which an embedding of `count` rows has none."""
    return next((token for token in ids if not 0 <= token < count), None)


def beyond(token: str, number: int, count: int, where: str) -> BadInput:
    """The refusal of a token that the model has no row for."""
    return BadInput(
        f"{where} uses the token {token!r} (id {number}), and the model's embedding has {count:,} rows, ids 0 to {count - 1}",
        remedy="take the tokenizer that the model was trained with, or resize_token_embeddings, train the new rows and save again",
    )
