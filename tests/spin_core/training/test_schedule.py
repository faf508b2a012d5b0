"""The learning rate by step: every step has one, the first included."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_scheduler

from spin_core.training.schedule import Schedule

SHAPES = ["linear", "cosine", "constant"]


def shares(steps: int, shape: str = "linear", ratio: float = 0.1, trained: int | None = None) -> list[float]:
    schedule = Schedule.of({"schedule": shape, "warmup_ratio": ratio}, steps)
    return [schedule.share(step) for step in range(1, (trained or steps) + 1)]


@settings(max_examples=100, deadline=None)
@given(steps=st.integers(1, 300), shape=st.sampled_from(SHAPES), ratio=st.floats(0, 0.99))
def test_every_step_has_a_rate(steps: int, shape: str, ratio: float) -> None:
    """A run of one step trained nothing at all, and every run's first step was lost."""
    found = shares(steps, shape, ratio)
    assert all(0.0 < share <= 1.0 for share in found)
    peak = found.index(max(found))
    assert found[peak] == 1.0
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)


def test_by_hand() -> None:
    assert shares(1) == [1.0]
    assert shares(4, ratio=0.5) == pytest.approx([0.5, 1.0, 2 / 3, 1 / 3])
    assert shares(4, ratio=0.0) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert shares(3, "cosine", 0.0) == pytest.approx([1.0, 0.75, 0.25])
    assert shares(3, "constant", 0.4) == [0.5, 1.0, 1.0]


@pytest.mark.parametrize("shape", SHAPES)
def test_without_warm_up_it_is_that_of_transformers(shape: str) -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_scheduler("constant_with_warmup" if shape == "constant" else shape, optimizer, 0, 7)
    found = []
    for _ in range(7):
        found.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert shares(7, shape, 0.0) == pytest.approx(found)


def test_a_run_that_stops_before_the_end_follows_the_whole_schedule() -> None:
    assert shares(60, trained=20) == shares(60)[:20]
    assert shares(60, trained=20)[-1] == pytest.approx((60 - 19) / (61 - 6))
