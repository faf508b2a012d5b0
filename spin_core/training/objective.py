"""The SPIN objective. Axes: B pairs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def spin_loss(
    real_B: Tensor,
    generated_B: Tensor,
    reference_real_B: Tensor,
    reference_generated_B: Tensor,
    beta: float,
    kind: Literal["sigmoid", "hinge", "ipo"],
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss a pair and the implicit rewards of both answers; all fp32 [B], log-probs in nats summed over the answer.

    Equation 4.7 of arXiv 2401.01335: ℓ(z), z = β[(log p_θ(y|x) − log p_θt(y|x)) − (log p_θ(y'|x) − log p_θt(y'|x))],
    with ℓ(z) = −log σ(z) (`sigmoid`) or max(0, 1 − z) (`hinge`); `ipo` is (z/β − 1/(2β))² (arXiv 2310.12036), on summed
    log-probs. Label smoothing ε (`sigmoid` only) is conservative DPO's: (1 − ε)·ℓ(z) + ε·ℓ(−z).
    """
    reward_real_B = beta * (real_B - reference_real_B)
    reward_generated_B = beta * (generated_B - reference_generated_B)
    z_B = reward_real_B - reward_generated_B
    if kind == "sigmoid":
        loss_B = -(1.0 - label_smoothing) * functional.logsigmoid(z_B) - label_smoothing * functional.logsigmoid(-z_B)
    elif kind == "hinge":
        loss_B = torch.relu(1.0 - z_B)
    else:
        loss_B = ((z_B - 0.5) / beta) ** 2
    return loss_B, reward_real_B.detach(), reward_generated_B.detach()
