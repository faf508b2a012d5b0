"""What training over several devices asks of a model that accelerate will wrap in DDP, FSDP2 or DeepSpeed ZeRO."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from transformers import Trainer


def autocast_in_forward(model: Any, device: torch.device) -> None:
    """Makes `model(...)` compute in bf16 on `device` and return fp32; weights, gradients and optimiser stay fp32.

    It is what accelerate does where a model is not cut. Asked to do it for one that is, it would have FSDP2 round the outputs,
    summed log-probs, to bf16 and reduce the gradients in it, and DeepSpeed train bf16 weights and save those.
    """
    model.forward = convert_outputs_to_fp32(torch.autocast(device.type, torch.bfloat16)(model.forward))


def save_whole(trainer: Trainer, folder: str) -> None:
    """Saves the model as from_pretrained reads it, gathered from all devices; called on each of them."""
    if not trainer.is_fsdp_enabled:
        trainer.save_model(folder)
        return
    # checkpoints are in parts, and in that mode the Trainer would write no model at all
    plugin = trainer.accelerator.state.fsdp_plugin
    of_checkpoints = plugin.state_dict_type
    plugin.set_state_dict_type("FULL_STATE_DICT")
    try:
        trainer.save_model(folder)
    finally:
        plugin.set_state_dict_type(of_checkpoints)
