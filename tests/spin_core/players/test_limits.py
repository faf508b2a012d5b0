"""Positions and vocabulary, as config.json has them."""

import json
from pathlib import Path
from typing import Any

import pytest

from spin_core.players.limits import positions, require_positions
from spin_core.runtime.errors import BadInput


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({"max_position_embeddings": 512}, 512),
        ({"model_type": "gpt2", "n_positions": 64, "n_ctx": 64}, 64),
        ({"model_type": "mpt", "max_seq_len": 128, "attn_config": {"alibi": True}}, None),
        ({"model_type": "mpt", "max_seq_len": 128, "attn_config": {"alibi": False}}, 128),
        ({"model_type": "falcon", "alibi": True, "max_position_embeddings": 2048}, None),
        ({"model_type": "bloom", "seq_length": 2048}, None),
        ({"model_type": "mamba"}, None),
        ({"model_type": "mistral", "max_position_embeddings": 4096, "sliding_window": 16}, 4096),
        ({"max_position_embeddings": 512, "rope_scaling": {"type": "linear", "factor": 4.0}}, 2048),
        ({"max_position_embeddings": 512, "rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, 1024),
        ({"max_position_embeddings": 512, "rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, 512),
        ({"max_position_embeddings": 512, "rope_scaling": None, "alibi": False}, 512),
        ({"model_type": "gemma3_text", "max_position_embeddings": 512, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}, 512),
        (
            {
                "model_type": "x",
                "max_position_embeddings": 512,
                "rope_parameters": {
                    "full_attention": {"rope_type": "default"},
                    "sliding_attention": {"rope_type": "linear", "factor": 2.0},
                },
            },
            1024,
        ),
        ({"model_type": "llava", "text_config": {"model_type": "llama", "max_position_embeddings": 256}}, 256),
    ],
)
def test_positions_of_a_config(config: dict[str, Any], most: int | None) -> None:
    """Too few would refuse a good recipe, too many end in an IndexError after an hour of sampling."""
    assert positions(config) == most


@pytest.mark.parametrize(
    ("prompt", "answer", "words"),
    [
        (512, 256, "lower data.max_prompt_tokens to 256"),
        (100, 600, "lower generation.max_new_tokens to 412"),
        (300, 300, "lower data.max_prompt_tokens to 212 or generation.max_new_tokens to 212"),
        (600, 600, "lower both: together at most 512"),
    ],
)
def test_the_refusal_says_which_key_to_lower(tmp_path: Path, prompt: int, answer: int, words: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "max_position_embeddings": 512}))
    require_positions(tmp_path, 256, 256)
    with pytest.raises(BadInput, match="has 512 positions") as error:
        require_positions(tmp_path, prompt, answer)
    assert words in str(error.value)
