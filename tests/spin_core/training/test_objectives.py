"""Every objective against values derived by hand, its own word about where it starts, and what its formula implies."""

import math
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from spin_core.recipe import TrainingSettings
from spin_core.recipe.losses import LOSSES
from spin_core.training.objectives import OBJECTIVES, Newer, Objective, Pairs, objective

TABLE: dict[str, Any] = {"label_smoothing": 0.0, "sft_weight": 0.0, "dpop_lambda": 5.0, "history_weight": 0.0}
LOGISTIC = ["sigmoid", "sigmoid_norm", "nce"]


def make(loss: str, beta: float = 0.5, **changes: Any) -> Objective:
    return objective({"loss": loss, "beta": beta, **TABLE, **changes})


def pairs_of(
    real: float, generated: float, reference_real: float, reference_generated: float, tokens: tuple[int, int] = (4, 5)
) -> tuple[Pairs, list[Tensor]]:
    """One pair in float64, and its two leaves."""
    values = [
        torch.tensor([float(value)], dtype=torch.float64) for value in (real, generated, reference_real, reference_generated, *tokens)
    ]
    return Pairs(*values), [leaf.requires_grad_() for leaf in values[:2]]


def value(found: Objective, pairs: Pairs) -> float:
    return found.loss(pairs)[0].item()


def softplus(x: float) -> float:
    """log(1 + e^x) = −log σ(−x), in plain floats."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


@pytest.mark.parametrize(
    ("loss", "beta", "changes", "by_hand", "printed"),
    [
        # log-probs of the policy −10 and −9, of the reference −12 and −8, so r = 2 and g = −1; 4 and 5 tokens
        ("sigmoid", 0.1, {}, softplus(-0.3), 0.554355),
        ("hinge", 0.1, {}, 1 - 0.3, 0.7),
        ("ipo", 0.1, {}, (3 - 5) ** 2, 4.0),
        ("nce", 1.0, {}, softplus(-2) + softplus(-1), 0.440190),
        ("nca", 1.0, {}, softplus(-2) + softplus(2) / 2 + softplus(-1) / 2, 1.347023),
        ("sppo", 0.25, {}, (2 - 2) ** 2 + (-1 + 2) ** 2, 1.0),
        ("sigmoid_norm", 5.0, {}, softplus(-5 * (2 / 4 + 1 / 5)), 0.029750),
        ("dpop", 0.1, {}, softplus(-0.3), 0.554355),  # the human answer became more likely: no penalty
        ("sigmoid", 0.1, {"sft_weight": 1.0}, softplus(-0.3) + 10 / 4, 3.054355),
        ("sigmoid", 0.1, {"label_smoothing": 0.2}, 0.8 * softplus(-0.3) + 0.2 * softplus(0.3), 0.614355),
        ("nce", 1.0, {"label_smoothing": 0.2}, 0.8 * (softplus(-2) + softplus(-1)) + 0.2 * (softplus(1) + softplus(2)), 1.040190),
    ],
)
def test_values_derived_by_hand(loss: str, beta: float, changes: dict[str, Any], by_hand: float, printed: float) -> None:
    found = value(make(loss, beta, **changes), pairs_of(-10, -9, -12, -8)[0])
    assert found == pytest.approx(by_hand, abs=1e-12)
    assert found == pytest.approx(printed, abs=5e-7)


def test_dpop_holds_human_answers_up() -> None:
    """r = −1, g = −1: the margin is 0, but the human answer lost a nat, which weighs five."""
    found = value(make("dpop", 0.1), pairs_of(-13, -9, -12, -8)[0])
    assert found == pytest.approx(softplus(-0.1 * (-1 + 1 - 5 * 1)), abs=1e-12)
    assert found == pytest.approx(0.974077, abs=5e-7)


@pytest.mark.parametrize(
    ("loss", "beta", "expected"),
    [
        ("sigmoid", 0.1, math.log(2)),
        ("hinge", 0.1, 1.0),
        ("ipo", 0.1, 25.0),  # (1 / 0.2)²
        ("nce", 1.0, 2 * math.log(2)),
        ("nca", 1.0, 2 * math.log(2)),  # 1 + ½ + ½ times ln 2
        ("sppo", 0.25, 8.0),  # 2 · (1 / 0.5)²
        ("dpop", 0.1, math.log(2)),
        ("sigmoid_norm", 5.0, math.log(2)),
    ],
)
def test_value_where_policy_is_the_reference(loss: str, beta: float, expected: float) -> None:
    """What the step-0 check expects; sft_weight adds the reference's NLL a token."""
    found = make(loss, beta)
    pairs, _ = pairs_of(-12, -8, -12, -8)
    assert value(found, pairs) == pytest.approx(expected)
    assert found.start.value == pytest.approx(expected)
    assert found.at_reference(pairs)[0].item() == pytest.approx(expected)
    held = make(loss, beta, sft_weight=2.0)
    assert value(held, pairs) == pytest.approx(expected + 2.0 * 12 / 4)
    assert held.at_reference(pairs)[0].item() == pytest.approx(expected + 2.0 * 12 / 4)


@pytest.mark.parametrize("loss", OBJECTIVES)
@pytest.mark.parametrize("beta", [0.1, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_declared_slopes_are_those_of_autograd(loss: str, beta: float, smoothing: float) -> None:
    """The step-0 check's tolerance is made of them: a slope that is too small stops good runs, one too large lets bad ones pass."""
    if smoothing and not LOSSES[loss].smooths:
        pytest.skip("no label smoothing")
    found = make(loss, beta, label_smoothing=smoothing)
    pairs, leaves = pairs_of(-12, -8, -12, -8, (4, 5))
    found.loss(pairs)[0].sum().backward()
    start, (real, generated) = found.start, (leaf.grad.item() for leaf in leaves)  # type: ignore[union-attr]
    lengths = (4, 5) if found.per_token else (1, 1)
    assert real * lengths[0] == pytest.approx((1 - smoothing) * start.real + smoothing * start.generated)
    assert generated * lengths[1] == pytest.approx((1 - smoothing) * start.generated + smoothing * start.real)
    assert found.at_reference(pairs)[1].item() == pytest.approx(abs(real) + abs(generated))
    assert real < 0 < generated


def with_newer(values: list[tuple[float, float, float, float]], newer: dict[int, tuple[float, float, int]]) -> Pairs:
    """Pairs of 4 and 5 tokens (policy and reference, real and sampled), and of some the newer answer: policy, reference, tokens."""
    double = [torch.tensor(column, dtype=torch.float64) for column in zip(*((*each, 4.0, 5.0) for each in values), strict=True)]
    policy_H, reference_H, tokens_H = (torch.tensor(column, dtype=torch.float64) for column in zip(*newer.values(), strict=True))
    return Pairs(*double, Newer(torch.tensor([*newer]), policy_H, reference_H, tokens_H))


@pytest.mark.parametrize(
    ("loss", "beta", "changes", "by_hand"),
    [
        # the second pair has r = 2 and g = −1 as above, and a newer answer of 3 tokens with n = 0.5
        ("sigmoid", 0.1, {}, [softplus(-0.3), softplus(-0.3) + 0.5 * softplus(-0.15)]),
        ("nce", 1.0, {}, [softplus(-2) + softplus(-1), softplus(-2) + softplus(-1) + 0.5 * (softplus(-0.5) + softplus(-1))]),
        ("sigmoid_norm", 5.0, {}, [softplus(-3.5), softplus(-3.5) + 0.5 * softplus(-5 * (0.5 / 3 + 1 / 5))]),
        ("sigmoid", 0.1, {"sft_weight": 1.0}, [softplus(-0.3) + 2.5, softplus(-0.3) + 2.5 + 0.5 * softplus(-0.15)]),
        (
            "sigmoid",
            0.1,
            {"label_smoothing": 0.2},
            [0.8 * softplus(-0.3) + 0.2 * softplus(0.3)] * 2 + [0.5 * (0.8 * softplus(-0.15) + 0.2 * softplus(0.15))],
        ),
    ],
)
def test_a_newer_answer_is_preferred_over_the_sampled_one(loss: str, beta: float, changes: dict[str, Any], by_hand: list[float]) -> None:
    """Weighed by half; nothing of it is in the SFT term or in the metrics."""
    found = make(loss, beta, history_weight=0.5, **changes)
    pairs = with_newer([(-10, -9, -12, -8)] * 2, {1: (-6.5, -7, 3)})
    loss_B, metrics = found.loss(pairs)
    assert loss_B.tolist() == pytest.approx([by_hand[0], sum(by_hand[1:])])
    alone = found.loss(pairs_of(-10, -9, -12, -8)[0])[1]
    assert {name: each.tolist() for name, each in metrics.items()} == {name: each.tolist() * 2 for name, each in alone.items()}


@pytest.mark.parametrize("loss", [name for name in OBJECTIVES if name != "dpop"])
def test_history_starts_where_the_step_0_check_expects(loss: str) -> None:
    """Value and slopes of a pair with a newer answer, by autograd; the pair beside it knows nothing of it."""
    found = make(loss, 0.3, history_weight=0.5, sft_weight=2.0)
    pairs = with_newer([(-12, -8, -12, -8), (-3, -2, -3, -2)], {1: (-7, -7, 3)})
    assert pairs.newer
    leaves = [leaf.requires_grad_() for leaf in (pairs.real_B, pairs.generated_B, pairs.newer.logp_H)]
    loss_B, _ = found.loss(pairs)
    value_B, slope_B = found.at_reference(pairs)
    assert value_B.tolist() == pytest.approx(loss_B.tolist())
    assert value_B[1].item() == pytest.approx(1.5 * found.start.value + 2.0 * 3 / 4)
    loss_B[1].backward()
    real, generated, newer = (leaf.grad for leaf in leaves)
    assert real is not None
    assert generated is not None
    assert newer is not None
    assert newer.item() < 0 < generated[1].item()
    assert slope_B[1].item() == pytest.approx(abs(real[1].item()) + abs(generated[1].item()) + abs(newer.item()))
    assert slope_B[0].item() < slope_B[1].item()


ratios = st.floats(-30, 30)
betas = st.floats(0.05, 5)


def at(found: Objective, r: float, g: float) -> float:
    return found.pair_loss(torch.tensor([r], dtype=torch.float64), torch.tensor([g], dtype=torch.float64)).item()


@settings(max_examples=60, deadline=None)
@given(loss=st.sampled_from(list(OBJECTIVES)), beta=betas, r=ratios, g=ratios, by=st.floats(0, 5))
def test_more_likely_human_answers_never_cost_up_to_where_the_loss_rests(loss: str, beta: float, r: float, g: float, by: float) -> None:
    """Down in r and up in g; the squares and nca turn at their targets, so the way there is looked at."""
    found = make(loss, beta)
    rests = {"ipo": g + 0.5 / beta, "sppo": 0.5 / beta, "nca": math.log(2.0) / beta}.get(loss, math.inf)
    if r + by <= rests:
        assert at(found, r + by, g) <= at(found, r, g) + 1e-9
    lowest = {"ipo": r - 0.5 / beta, "sppo": -0.5 / beta}.get(loss, -math.inf)
    if g - by >= lowest:
        assert at(found, r, g - by) <= at(found, r, g) + 1e-9


@settings(max_examples=60, deadline=None)
@given(loss=st.sampled_from(list(OBJECTIVES)), beta=betas, r=ratios, g=ratios)
def test_symmetries(loss: str, beta: float, r: float, g: float) -> None:
    found = make(loss, beta)
    if loss in ("sigmoid", "hinge", "ipo", "sigmoid_norm"):  # of the margin alone
        assert at(found, r, g) == pytest.approx(at(found, r - g, 0.0), rel=1e-9, abs=1e-12)
    if loss in ("sigmoid", "hinge", "ipo", "sigmoid_norm", "nce", "sppo"):  # human and sampled change places with their signs
        assert at(found, r, g) == pytest.approx(at(found, -g, -r), rel=1e-9, abs=1e-12)
    if loss in ("sigmoid", "sigmoid_norm"):  # softplus(−z) = softplus(z) − z
        assert at(found, g, r) - at(found, r, g) == pytest.approx(beta * (r - g), rel=1e-9, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(loss=st.sampled_from(LOGISTIC), beta=betas, r=ratios, g=ratios, smoothing=st.floats(0.01, 0.49))
def test_label_smoothing_is_the_mean_over_both_labellings(loss: str, beta: float, r: float, g: float, smoothing: float) -> None:
    right, wrong = (value(make(loss, beta), pairs_of(*sides, 0, 0, (1, 1))[0]) for sides in ((r, g), (g, r)))
    found = value(make(loss, beta, label_smoothing=smoothing), pairs_of(r, g, 0, 0, (1, 1))[0])
    assert found == pytest.approx((1 - smoothing) * right + smoothing * wrong, rel=1e-9)


@pytest.mark.parametrize("sft_weight", [0.0, 1.0])
@pytest.mark.parametrize("loss", OBJECTIVES)
def test_needs_are_the_truth(loss: str, sft_weight: float) -> None:
    """Identical pairs are left out of training where the loss has no gradient on them, and only there."""
    recipe = TrainingSettings(loss=loss, sft_weight=sft_weight, beta=1.0)  # type: ignore[arg-type]
    found = make(loss, sft_weight=sft_weight)
    answer = torch.tensor([-13.0], dtype=torch.float64, requires_grad=True)  # one answer, a nat under the reference
    reference, tokens = torch.tensor([-12.0], dtype=torch.float64), torch.tensor([4.0], dtype=torch.float64)
    found.loss(Pairs(answer, answer, reference, reference, tokens, tokens))[0].sum().backward()
    assert (abs(answer.grad.item()) > 1e-9) == recipe.keeps_identical  # type: ignore[union-attr]
    pairs, _ = pairs_of(-10, -9, -12, -8)
    longer = replace(pairs, real_tokens_B=2 * pairs.real_tokens_B)
    assert (value(found, pairs) != value(found, longer)) == ("lengths" in found.needs)


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_what_a_loss_asks_for(loss: str) -> None:
    """At the margin that `asks` names, given by the human answer alone, the pull on it is 5 % of the first one, or over."""
    found, tokens = make(loss, 0.3, dpop_lambda=0.0), 6
    nats = found.asks(tokens)
    assert nats == pytest.approx(
        {"hinge": 1, "ipo": 0.5, "sppo": 0.5, "nca": math.log(2)}.get(loss, 3) / 0.3 * (6 if found.per_token else 1)
    )
    pulls = []
    for r in (0.0, nats * 1.0001):
        pairs, (real, _) = pairs_of(r, 0, 0, 0, (tokens, tokens))
        found.loss(pairs)[0].sum().backward()
        pulls.append(-real.grad.item())  # type: ignore[union-attr]
    assert pulls[0] > 0
    assert pulls[1] < 0.1 * pulls[0]


def test_rewards_are_of_whole_answers() -> None:
    """Whatever the loss does with lengths, so that runs of different losses can be compared."""
    for loss in OBJECTIVES:
        _, metrics = make(loss, 0.5).loss(pairs_of(-10, -9, -12, -8)[0])
        assert {name: found.item() for name, found in metrics.items()} == {
            "rewards/real": 1.0,
            "rewards/generated": -0.5,
            "rewards/margins": 1.5,
            "rewards/accuracies": 1.0,
        }


def test_the_recipe_names_every_objective() -> None:
    assert set(get_args(TrainingSettings.model_fields["loss"].annotation)) == set(LOSSES) == set(OBJECTIVES)


def test_large_margins_stay_finite() -> None:
    for loss in OBJECTIVES:
        pairs, leaves = pairs_of(-5000, -1, -1, -5000)
        loss_B, _ = make(loss, 5.0).loss(pairs)
        loss_B.sum().backward()
        assert math.isfinite(loss_B.item())
        assert all(math.isfinite(leaf.grad.item()) for leaf in leaves)  # type: ignore[union-attr]
