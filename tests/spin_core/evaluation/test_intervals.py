"""Do 95 % intervals hold what they promise? Campaigns whose truth is known."""

from collections.abc import Callable

import numpy as np
import pytest

from spin_core.evaluation.intervals import Values, interval


def test_by_hand() -> None:
    found = interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert found.value == 2.5
    assert found.low is not None
    assert found.high is not None
    # the standard error of the mean is 0.645; of four values a percentile interval can only be near 1.96 of them
    assert 0.9 < found.high - found.value < 1.5
    assert found.half == pytest.approx((found.high - found.low) / 2)
    assert interval(np.array([1.0, 2.0, 3.0, 4.0])) == found  # the same draws again


def test_a_ratio_is_of_the_sums() -> None:
    """Nats a token: a long answer counts for more. Where every row has the same ratio there is nothing to doubt."""
    assert interval(np.array([4.0, 1.0]), np.array([2.0, 2.0])).value == 1.25
    same = interval(np.array([4.0, 2.0]), np.array([2.0, 1.0]))
    assert (same.value, same.low, same.high) == (2.0, 2.0, 2.0)


def test_of_one_prompt_nothing_can_be_said() -> None:
    found = interval(np.array([1.0]))
    assert (found.value, found.low, found.half, found.prompts) == (1.0, None, None, 1)
    assert np.isnan(interval(np.array([])).value)


Campaign = Callable[[np.random.Generator], tuple[Values, Values | None]]


def gained_checks(dice: np.random.Generator) -> tuple[Values, Values | None]:
    """100 prompts, four answers each under two players; a prompt's difficulty is shared. The truth is +0.1."""
    easy_N = dice.uniform(0.1, 0.8, 100)
    before, after = (dice.binomial(4, share_N) / 4 for share_N in (easy_N, easy_N + 0.1))
    return after - before, None


def gained_nll(dice: np.random.Generator) -> tuple[Values, Values | None]:
    """Nats that human answers of 1 to 40 tokens gained, heavy-tailed. The truth is 0.2 a token."""
    tokens_N = dice.integers(1, 40, 100).astype(float)
    return 0.2 * tokens_N + dice.standard_t(4, 100) * np.sqrt(tokens_N), tokens_N


@pytest.mark.parametrize(("campaign", "truth"), [(gained_checks, 0.1), (gained_nll, 0.2)])
def test_the_interval_holds_the_truth_in_95_of_100_campaigns(campaign: Campaign, truth: float) -> None:
    found = [interval(*campaign(np.random.default_rng(number))) for number in range(1000)]
    held = sum(one.low <= truth <= one.high for one in found if one.low is not None and one.high is not None)
    assert 930 <= held <= 970
