"""Which of vLLM's arguments a recipe may set: those that change speed and memory, never what is sampled.

The list is of what is let through, not of what is refused, so that an argument which a later vLLM brings cannot change p_θ unseen.
Names are those of `vllm serve --help`, with `_` or `-`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

_GROUPS = {
    "the batch of a step, and the order of what waits": """
        max_num_seqs max_num_active_seqs max_num_batched_tokens max_num_scheduled_tokens enable_chunked_prefill
        long_prefill_token_threshold long_prefill_token_threshold_adaptive scheduling_policy scheduler_reserve_full_isl
        prefill_schedule_interval async_scheduling stream_interval""",
    "the cache of keys and values": """
        block_size enable_prefix_caching prefix_caching_hash_algo kv_cache_memory_bytes num_gpu_blocks_override kv_offloading_size
        kv_offloading_backend disable_hybrid_kv_cache_manager""",
    "weights that are kept elsewhere, and how they are read": """
        offload_backend cpu_offload_gb cpu_offload_params offload_group_size offload_num_in_group offload_prefetch_step offload_params
        safetensors_load_strategy safetensors_prefetch_num_threads safetensors_prefetch_block_size max_parallel_loading_workers""",
    "kernels: sums in another order, as between two cards": """
        enforce_eager compilation_config optimization_level cudagraph_capture_sizes max_cudagraph_capture_size attention_backend
        enable_flashinfer_autotune disable_custom_all_reduce""",
    "the GPUs of one engine": """
        enable_expert_parallel expert_placement_strategy enable_eplb eplb_config distributed_executor_backend
        distributed_timeout_seconds numa_bind numa_bind_nodes numa_bind_cpus""",
    "what a model of text and pictures need not hold for text": """
        language_model_only limit_mm_per_prompt skip_mm_profiling""",
    "what is told": """
        max_logprobs log_level uvicorn_log_level enable_mfu_metrics cudagraph_metrics kv_cache_metrics""",
}
PASSED = frozenset(name for names in _GROUPS.values() for name in names.split())

# set from elsewhere in the recipe
_KEYS = {
    "model": "model.name",
    "revision": "model.revision",
    "trust_remote_code": "model.trust_remote_code",
    "tensor_parallel_size": "generation.tensor_parallel",
    "gpu_memory_utilization": "generation.gpu_memory",
    "device_memory_utilization": "generation.gpu_memory",
    "max_model_len": "data.max_prompt_tokens and generation.max_new_tokens",
    "seed": "generation.seed",
    "data_parallel_size": "CUDA_VISIBLE_DEVICES: as many engines are started as the GPUs allow",
}


def checked(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments with `_` in their names, in order of name. Raises ValueError for one that is not in `PASSED`."""
    found = {name.replace("-", "_"): value for name, value in arguments.items()}
    for name in found:
        if name in _KEYS:
            raise ValueError(f"{name} is set by {_KEYS[name]}")
        if name not in PASSED:
            close = difflib.get_close_matches(name, PASSED, 1, 0.8)
            hint = f"did you mean {close[0]}?" if close else "docs/operations.md lists what is passed on"
            raise ValueError(f"{name} is not known to leave what is sampled as it is; {hint}")
    return dict(sorted(found.items()))
