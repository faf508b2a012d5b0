"""The device that a child computes on."""

from __future__ import annotations

import os

import torch

from spin_core.runtime.progress import MACHINE, Progress, print_event


def compute_device() -> torch.device:
    """CUDA where torch sees it, else the CPU. Tells the run where it was given GPUs and torch sees none."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").strip()
    if given not in {"", "-1"} and os.environ.get("RANK", "0") == "0":
        why = f"torch {torch.__version__} sees none of the GPUs, so everything is computed on the CPU; see spinflow doctor"
        print_event(Progress(MACHINE, 0, 0, note=why))
    return torch.device("cpu")
