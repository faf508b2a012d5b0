"""β from the data: 3 / mean summed NLL of the human answers, bounded."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spin_core.scoring.beta import Surprise


def test_by_hand(tmp_path: Path) -> None:
    found = Surprise.of([-2.0, -4.0, -6.0], [3, 4, 8])
    assert (found.mean_real_nll, found.mean_real_tokens, found.beta) == (4.0, 5.0, 0.75)
    found.write(tmp_path)
    assert Surprise.read(tmp_path) == found
    assert json.loads((tmp_path / "beta.json").read_text()) == {"mean_real_nll": 4.0, "mean_real_tokens": 5.0, "beta_auto": 0.75}
    assert found.resolve("auto") == 0.75
    assert found.resolve(0.1) == 0.1


@pytest.mark.parametrize(("nll", "beta"), [(0.0, 5.0), (0.5, 5.0), (0.6, 5.0), (3.0, 1.0), (30.0, 0.1), (400.0, 0.1)])
def test_bounds(nll: float, beta: float) -> None:
    """The paper's 0.1 for long answers, its 5.0 where hardly anything is left to learn."""
    assert Surprise(nll, 10.0).beta == pytest.approx(beta)


@given(st.lists(st.tuples(st.floats(-500, 0), st.integers(1, 400)), min_size=1, max_size=50))
def test_it_does_not_depend_on_the_order_of_the_pairs(pairs: list[tuple[float, int]]) -> None:
    one, other = (Surprise.of([logp for logp, _ in rows], [size for _, size in rows]) for rows in (pairs, pairs[::-1]))
    assert one == other
    assert 0.1 <= one.beta <= 5.0
