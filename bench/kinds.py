"""Tiny configs of transformers' decoders, as different from the plain Llama as each kind can be: what the sweep and the tests go over."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
}
_EXPERTS = {"num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_EXPERTS |= {"shared_expert_intermediate_size": 16, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8}
_LATENT |= {"head_dim": 4, "num_key_value_heads": 4}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8, "mamba_d_ssm": 64, "mamba_chunk_size": 8}
_LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_MIXED = {"layer_types": ["sliding_attention", "full_attention"], "head_dim": 8}
_CHUNKED = {"attention_chunk_size": 3, "no_rope_layers": [1, 0], "intermediate_size_mlp": 64, "head_dim": 8}
_DYNAMIC = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
_LONG_ROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "rope_theta": 1e4}

# A window of 3 is shorter than most prompts and answers, one of 8 than some, one of 64 than none.
# name → model type and what its config has beside SIZES
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    # packed
    "apertus": ("apertus", {}),
    "arcee": ("arcee", {}),
    "cohere": ("cohere", {"logit_scale": 0.0625}),
    "cohere2": ("cohere2", {**_MIXED, "sliding_window": 3, "logit_scale": 0.5}),
    "cwm": ("cwm", {**_MIXED, "sliding_window": 3}),
    "ernie4_5": ("ernie4_5", {"head_dim": 8}),
    "exaone4": ("exaone4", {**_MIXED, "sliding_window": 3}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {**_MIXED, "sliding_window": 3, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.3}),
    "gemma2 window 8": ("gemma2", {**_MIXED, "sliding_window": 8, "attn_logit_softcapping": None, "query_pre_attn_scalar": 4}),
    "gemma3": ("gemma3_text", {**_MIXED, "sliding_window": 3}),
    "gemma3 window 8": ("gemma3_text", {**_MIXED, "sliding_window": 8, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.3}),
    "glm": ("glm", {"head_dim": 8}),
    "glm4": ("glm4", {"head_dim": 8}),
    "gpt2": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "gpt_neox": ("gpt_neox", {}),
    "granite": ("granite", {"logits_scaling": 8.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}),
    "helium": ("helium", {"head_dim": 8}),
    "hunyuan": ("hunyuan_v1_dense", {"head_dim": 8}),
    "hyperclovax": ("hyperclovax", {"logits_scaling": 0.125, "attention_multiplier": 0.2, "use_post_norm": True}),
    "jais2": ("jais2", {}),
    "llama": ("llama", {}),
    "llama dynamic rope, short": ("llama", {"rope_parameters": _DYNAMIC}),
    "llama yarn rope": ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}),
    "ministral": ("ministral", {**_MIXED, "sliding_window": 3}),
    "ministral3": ("ministral3", {"head_dim": 8, "sliding_window": 3}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral window 1": ("mistral", {"sliding_window": 1}),
    "mistral window 3": ("mistral", {"sliding_window": 3}),
    "mistral window 8": ("mistral", {"sliding_window": 8}),
    "mistral window 64": ("mistral", {"sliding_window": 64}),
    "nanochat": ("nanochat", {}),
    "olmo": ("olmo", {"clip_qkv": 0.5}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", {**_MIXED, "sliding_window": 3}),
    "phi": ("phi", {"qk_layernorm": True}),
    "phi3": ("phi3", {"sliding_window": 3}),
    "phi3 longrope, short": ("phi3", {"original_max_position_embeddings": 32, "rope_parameters": _LONG_ROPE}),
    "qwen2": ("qwen2", {}),
    "qwen2 window": ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 window": ("qwen3", {"head_dim": 16, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}),
    "seed_oss": ("seed_oss", {"head_dim": 8}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0]}),
    "smollm3 window": ("smollm3", {**_MIXED, "use_sliding_window": True, "sliding_window": 3, "no_rope_layers": [1, 0]}),
    "starcoder2": ("starcoder2", {"sliding_window": 3}),
    "vaultgemma": ("vaultgemma", {**_MIXED, "sliding_window": 3, "attn_logit_softcapping": 0.5, "final_logit_softcapping": 0.3}),
    # padded: alibi, kernels of their own, arguments that do not reach attention
    "bitnet": ("bitnet", {}),
    "biogpt": ("biogpt", {}),
    "bloom": ("bloom", {}),
    "codegen": ("codegen", {"rotary_dim": 4}),
    "ctrl": ("ctrl", {"dff": 64}),
    "diffllama": ("diffllama", {}),
    "doge": ("doge", {}),
    "falcon": ("falcon", {}),
    "falcon alibi": ("falcon", {"alibi": True, "new_decoder_architecture": True}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 3}),
    "gptj": ("gptj", {"rotary_dim": 4}),
    "minicpm3": ("minicpm3", {**_LATENT, "dim_model_base": 8}),
    "moshi": ("moshi", {"sliding_window": 3}),
    "mpt": ("mpt", {}),
    "nemotron": ("nemotron", {}),
    "openai-gpt": ("openai-gpt", {}),
    "opt": ("opt", {"word_embed_proj_dim": 16, "ffn_dim": 64}),
    "persimmon": ("persimmon", {}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "xglm": ("xglm", {"ffn_dim": 64}),
    # padded: attention sinks, chunks, mixtures of experts
    "cohere2_moe": ("cohere2_moe", {**_EXPERTS, **_MIXED, "sliding_window": 3}),
    "deepseek_v2": ("deepseek_v2", {**_EXPERTS, **_LATENT}),
    "deepseek_v3": ("deepseek_v3", {**_EXPERTS, **_LATENT}),
    "glm4_moe": ("glm4_moe", {**_EXPERTS, "head_dim": 8}),
    "gpt_oss": ("gpt_oss", {**_EXPERTS, **_MIXED, "sliding_window": 3}),
    "granitemoe": ("granitemoe", {**_EXPERTS, "logits_scaling": 8.0}),
    "granite_swa": ("granite_swa", {**_MIXED, "sliding_window": 3, "logits_scaling": 8.0}),
    "llama4": (
        "llama4_text",
        {**_EXPERTS, "head_dim": 8, "attention_chunk_size": 3, "intermediate_size_mlp": 64, "no_rope_layers": [1, 0]},
    ),
    "mixtral": ("mixtral", {**_EXPERTS, "sliding_window": 3}),
    "olmoe": ("olmoe", _EXPERTS),
    "phimoe": ("phimoe", _EXPERTS),
    "qwen2_moe": ("qwen2_moe", _EXPERTS),
    "qwen3_moe": ("qwen3_moe", {**_EXPERTS, "head_dim": 8}),
    # padded: a state that runs along the row
    "bamba": ("bamba", {**_MAMBA, "attn_layer_indices": [1]}),
    "falcon_h1": ("falcon_h1", {**_MAMBA, "lm_head_multiplier": 0.1, "embedding_multiplier": 3.0}),
    "falcon_mamba": ("falcon_mamba", {}),
    "granitemoehybrid": ("granitemoehybrid", {**_EXPERTS, **_MAMBA, "layer_types": ["mamba", "attention"], "logits_scaling": 8.0}),
    "jamba": ("jamba", {**_EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "mamba": ("mamba", {}),
    "mamba2": ("mamba2", {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8, "chunk_size": 8}),
    "minimax": ("minimax", {**_EXPERTS, "head_dim": 8}),
    "nemotron_h": ("nemotron_h", {**_EXPERTS, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 1, "ssm_state_size": 8}),
    "olmo_hybrid": ("olmo_hybrid", {**_LINEAR, "layer_types": ["linear_attention", "full_attention"]}),
    "qwen3_5": ("qwen3_5_text", {**_LINEAR, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}),
    "qwen3_next": ("qwen3_next", {**_EXPERTS, **_LINEAR, "head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}),
    "recurrent_gemma": ("recurrent_gemma", {"attention_window_size": 3, "block_types": ["recurrent", "attention"], "logits_soft_cap": 0.3}),
    # refused: a token sees those after it, or frequencies depend on the batch
    "bert": ("bert", {}),
    "roberta": ("roberta", {}),
    "llama dynamic rope": (
        "llama",
        {"max_position_embeddings": 8, "rope_parameters": _DYNAMIC},
    ),
    "phi3 longrope": ("phi3", {"original_max_position_embeddings": 8, "rope_parameters": _LONG_ROPE}),
}
REFUSED = ("bert", "roberta", "llama dynamic rope", "phi3 longrope")


def config_of(name: str) -> PretrainedConfig:
    """The config of a kind. Some write into what they are given, so it is copied."""
    kind, more = KINDS[name]
    return AutoConfig.for_model(kind, **{**SIZES, **more})


def model_of(name: str) -> Any:
    """A model of it in fp32. Its weights are larger than usual: flat attention and flat logits would hide a wrong mask or scale."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(name)).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(3.0)
    return model
