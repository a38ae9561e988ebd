"""The Wilson interval equals scipy's and the published values, and refuses impossible counts."""

import math
from typing import Any

import pytest
from scipy.stats import binomtest

from vlakern.errors import InputError
from vlakern.trials import wilson


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [1, 2, 7, 10, 50, 1000])
def test_equals_scipy(n: int, confidence: float) -> None:
    """Every count of small n, and a grid of large n, agrees with scipy's own interval."""
    for successes in range(0, n + 1, max(1, n // 25)):
        interval = binomtest(successes, n).proportion_ci(confidence, method="wilson")
        low, high = wilson(successes, n, confidence)
        assert low == pytest.approx(interval.low, abs=1e-12)
        assert high == pytest.approx(interval.high, abs=1e-12)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(5, 10, 23.7, 76.3), (25, 50, 36.6, 63.4), (50, 50, 92.9, 100.0), (0, 50, 0.0, 7.1)],
)
def test_published_values(successes: int, n: int, low: float, high: float) -> None:
    """Percentages as tables print them."""
    found = wilson(successes, n)
    assert [round(100 * bound, 1) for bound in found] == [low, high]


def test_ends_are_exact_and_symmetric() -> None:
    """No success gives a lower bound of 0.0, all give 1.0, and failures mirror successes."""
    for n in range(1, 200):
        assert wilson(0, n)[0] == 0.0
        assert wilson(n, n)[1] == 1.0
        assert wilson(0, n)[1] == pytest.approx(1 - wilson(n, n)[0], abs=1e-14)


@pytest.mark.parametrize(
    ("successes", "n"), [(-1, 10), (11, 10), (0, 0), (1, -1), (2.0, 10), (True, 10), (1, "10")]
)
def test_refuses_impossible_counts(successes: Any, n: Any) -> None:
    """The sentence names both counts."""
    with pytest.raises(InputError, match=r"successes=.* and n="):
        wilson(successes, n)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.1, 95, math.nan])
def test_refuses_impossible_confidence(confidence: float) -> None:
    """A confidence in percent is caught rather than taken for a fraction."""
    with pytest.raises(InputError, match="confidence between 0 and 1"):
        wilson(1, 2, confidence)
