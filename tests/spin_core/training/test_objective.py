"""The loss against an independent reference in float64."""

import math

import pytest
import torch

from spin_core.training.objective import spin_loss


def by_hand(values: list[float], beta: float, kind: str, smoothing: float) -> tuple[float, list[float]]:
    """Equation 4.7 and its derivative by z, in plain Python floats."""
    real, generated, reference_real, reference_generated = values
    z = beta * ((real - reference_real) - (generated - reference_generated))
    if kind == "sigmoid":
        loss = (1 - smoothing) * math.log1p(math.exp(-z)) + smoothing * math.log1p(math.exp(z))
        slope = -(1 - smoothing) / (1 + math.exp(z)) + smoothing / (1 + math.exp(-z))
    elif kind == "ipo":
        loss, slope = (z / beta - 1 / (2 * beta)) ** 2, 2 * (z / beta - 1 / (2 * beta)) / beta
    else:
        loss, slope = max(0.0, 1 - z), -1.0 if z < 1 else 0.0
    return loss, [slope * beta, -slope * beta]


@pytest.mark.parametrize(("kind", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.2), ("hinge", 0.0), ("ipo", 0.0)])
@pytest.mark.parametrize("beta", [0.1, 5.0])
def test_loss_and_gradients(kind: str, smoothing: float, beta: float) -> None:
    rng = torch.Generator().manual_seed(0)
    rows = (-5 * torch.rand(20, 4, generator=rng, dtype=torch.float64)).tolist()
    for row in rows:
        leaves = [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in row]
        loss_B, reward_real_B, _ = spin_loss(*leaves, beta, kind, smoothing)  # type: ignore[arg-type]
        loss_B.sum().backward()
        expected, gradients = by_hand(row, beta, kind, smoothing)
        assert loss_B.item() == pytest.approx(expected, abs=1e-12)
        assert [leaf.grad.item() for leaf in leaves[:2]] == pytest.approx(gradients, abs=1e-12)  # type: ignore[union-attr]
        assert reward_real_B.item() == pytest.approx(beta * (row[0] - row[2]))


def test_equal_policies_give_ln_2() -> None:
    same = torch.tensor([-3.0, -70.0])
    loss_B, _, _ = spin_loss(same, same - 1, same, same - 1, 0.1, "sigmoid")
    assert loss_B.tolist() == pytest.approx([math.log(2)] * 2)
