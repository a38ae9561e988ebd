"""A drift over the queue is found, equals a peer's fit, and is not seen where there is none."""

import numpy as np
import pytest
from scipy.optimize import minimize

from vlakern.errors import InputError
from vlakern.trials import order_effect


def drifting(slope: float, n: int, rng: np.random.Generator) -> tuple[list[bool], list[int]]:
    place = np.arange(n)
    chance = 1 / (1 + np.exp(-slope * (place - n / 2)))
    return (rng.random(n) < chance).tolist(), place.tolist()


def test_slope_is_the_maximum_likelihood() -> None:
    """A general optimiser finds the same slope on the same model."""
    rng = np.random.default_rng(2)
    won, place = drifting(-0.05, 80, rng)
    cells = ["a", "b"] * 40
    sign = 2 * np.array(won) - 1

    def loss(parameters: np.ndarray) -> float:
        logit = np.tile(parameters[:2], 40) + parameters[2] * np.array(place)
        return float(np.logaddexp(0, -sign * logit).sum())

    found = order_effect(won, place, cells)
    expected = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-8}).x[2]
    assert found.slope == pytest.approx(expected, abs=1e-4)
    assert found.high is not None
    assert found.high < 0
    assert found.p < 0.01


def test_null_studies_keep_alpha() -> None:
    """2,000 studies of four cells with rates of their own: p <= 0.05 in at most 5 %."""
    rng = np.random.default_rng(6)
    cells = [c for _ in range(10) for c in "abcd"]
    rejected = 0
    for rates in rng.random((2000, 4)):
        won = (rng.random((10, 4)) < rates).ravel().tolist()
        rejected += order_effect(won, range(40), cells, resamples=199).p <= 0.05
    assert rejected / 2000 <= 0.055


def test_a_cells_own_difficulty_is_no_drift() -> None:
    """An easy task that ran first and a hard one that ran last are no fatigue."""
    won = [True] * 9 + [False] + [False] * 9 + [True]
    found = order_effect(won, [*range(9), 4.5, *range(10, 19), 14.5], ["easy"] * 10 + ["hard"] * 10)
    assert found.p > 0.5


def test_nothing_to_tell() -> None:
    """All successes tell nothing; a perfect order has a p-value and no finite slope."""
    assert order_effect([True] * 5, range(5), ["a"] * 5) == (0, None, None, None, 1.0)
    perfect = order_effect([True] * 6 + [False] * 6, range(12), ["a"] * 12)
    assert (perfect.slope, perfect.n) == (None, 12)
    assert perfect.p < 0.01


def test_same_seed_same_p() -> None:
    """A report that is made again says the same."""
    won, place = drifting(-0.02, 40, np.random.default_rng(3))
    one, other = (order_effect(won, place, ["a"] * 40, seed=7) for _ in range(2))
    assert one == other


def test_refuses_lists_that_do_not_fit() -> None:
    """No trial and lists of different lengths are named."""
    with pytest.raises(InputError, match="found 2, 1 and 2"):
        order_effect([True, False], [1], ["a", "a"])
    with pytest.raises(InputError, match="found 0, 0 and 0"):
        order_effect([], [], [])
