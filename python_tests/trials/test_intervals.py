"""The intervals equal scipy's and published values, cover, and refuse impossible counts."""

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betainc
from scipy.stats import beta as beta_distribution
from scipy.stats import binomtest

from vlakern.errors import ConfigError, InputError
from vlakern.trials import (
    beta,
    bounded_mean,
    newcombe,
    newcombe_paired,
    newcombe_stratified,
    risk_difference,
    wilson,
)


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


def counts(most: int = 40) -> st.SearchStrategy[tuple[int, int]]:
    return st.integers(1, most).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize("interval", [wilson, beta])
@pytest.mark.parametrize("n", [5, 10, 20, 50, 200])
def test_coverage_averaged_over_uniform_rates(interval: Callable[..., Any], n: int) -> None:
    """The exact mean coverage: each count's bounds under its own Beta posterior, all alike."""
    bounds = [(x, *interval(x, n)) for x in range(n + 1)]
    inside = [
        betainc(x + 1, n - x + 1, high) - betainc(x + 1, n - x + 1, low) for x, low, high in bounds
    ]
    assert 0.93 <= np.mean(inside) <= 0.97


@pytest.mark.parametrize("n", [1, 3, 10, 100])
def test_beta_equals_scipy(n: int) -> None:
    """Every count under two priors is scipy's quantile, but for the ends under Jeffreys' prior."""
    for successes in range(n + 1):
        for a, b in ((0.5, 0.5), (1.0, 1.0)):
            posterior = beta_distribution(a + successes, b + n - successes)
            low, high = beta(successes, n, 0.9, (a, b))
            ends = (a, b) == (0.5, 0.5)
            assert low == pytest.approx(0 if ends and not successes else posterior.ppf(0.05))
            assert high == pytest.approx(1 if ends and successes == n else posterior.ppf(0.95))


@pytest.mark.parametrize(
    ("samples", "low", "high"),
    [
        ((56, 70, 48, 80), 0.0524, 0.3339),
        ((9, 10, 3, 10), 0.1705, 0.8090),
        ((6, 7, 2, 7), 0.0582, 0.8062),
        ((5, 56, 0, 29), -0.0381, 0.1926),
        ((0, 10, 0, 20), -0.1611, 0.2775),
        ((0, 10, 0, 10), -0.2775, 0.2775),
        ((10, 10, 0, 20), 0.6791, 1.0),
        ((10, 10, 0, 10), 0.6075, 1.0),
    ],
)
def test_newcombe_published_values(samples: Any, low: float, high: float) -> None:
    """Newcombe (1998) 873-890, table II, method 10, all eight examples."""
    assert newcombe(*samples) == pytest.approx((low, high), abs=5e-5)


def test_newcombe_paired_published_values() -> None:
    """Altman et al., Statistics with Confidence (2000), table 6.2, and Newcombe (1998) 2635."""
    assert newcombe_paired(14, 5, 0, 22) == pytest.approx((0.011, 0.226), abs=5e-4)
    assert newcombe_paired(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)


@given(counts(), counts())
def test_newcombe_mirrors_and_has_a_width(a: tuple[int, int], b: tuple[int, int]) -> None:
    """Swapping the samples negates the bounds; the difference is inside; the width is not 0."""
    low, high = newcombe(*a, *b)
    assert -1 <= low < high <= 1
    assert low <= a[0] / a[1] - b[0] / b[1] <= high
    assert newcombe(*b, *a) == pytest.approx((-high, -low))
    assert newcombe_stratified([(*a, *b)]) == pytest.approx((a[0] / a[1] - b[0] / b[1], low, high))


@given(st.tuples(*[st.integers(0, 12)] * 4).filter(any))
def test_newcombe_paired_mirrors(cells: tuple[int, int, int, int]) -> None:
    """Swapping the members of the pairs negates the bounds, and so does swapping the outcome."""
    both, first, second, neither = cells
    low, high = newcombe_paired(both, first, second, neither)
    assert -1 <= low <= (first - second) / sum(cells) <= high <= 1
    assert newcombe_paired(both, second, first, neither) == pytest.approx((-high, -low))
    assert newcombe_paired(neither, second, first, both) == pytest.approx((-high, -low))


@pytest.mark.parametrize("sizes", [(10, 10), (10, 20), (50, 50)])
def test_newcombe_coverage(sizes: tuple[int, int]) -> None:
    """Both rates uniform on (0, 1): 20,000 differences are inside 93 to 97 % of the time."""
    n, m = sizes
    table = np.array([[newcombe(x, n, y, m) for y in range(m + 1)] for x in range(n + 1)])
    rng = np.random.default_rng(n * 1000 + m)
    rates = rng.random((20_000, 2))
    bounds = table[rng.binomial(n, rates[:, 0]), rng.binomial(m, rates[:, 1])]
    difference = rates[:, 0] - rates[:, 1]
    assert 0.93 <= np.mean((bounds[:, 0] <= difference) & (difference <= bounds[:, 1])) <= 0.97


def test_stratified_coverage_and_width() -> None:
    """Two tasks with rates of their own: covered; all or nothing still has a width."""
    rng = np.random.default_rng(4)
    inside = 0
    for rates in rng.random((5000, 2, 2)):
        won = rng.binomial(10, rates)
        _, low, high = newcombe_stratified([(int(x), 10, int(y), 10) for x, y in won])
        inside += low <= float((rates[:, 0] - rates[:, 1]).mean()) <= high
    assert 0.93 <= inside / 5000 <= 0.97
    sure = [(10, 10, 0, 10), (10, 10, 0, 10)]
    assert risk_difference(sure) == (1, 1, 1)
    assert newcombe_stratified(sure)[1] < 0.8


@pytest.mark.parametrize("prior", [(0, 1), (1, -1), (math.nan, 1), (math.inf, 1)])
def test_refuses_impossible_priors(prior: Any) -> None:
    """A Beta prior needs two positive numbers."""
    with pytest.raises(InputError, match="two positive numbers"):
        beta(1, 2, prior=prior)


def test_refuses_what_is_no_comparison() -> None:
    """Nothing to compare is said, not computed."""
    with pytest.raises(InputError, match="at least one stratum"):
        newcombe_stratified([])
    with pytest.raises(InputError, match="at least one pair"):
        newcombe_paired(0, 0, 0, 0)
    with pytest.raises(InputError, match="n=0"):
        newcombe(0, 0, 1, 2)


def test_bounded_mean() -> None:
    """Of zeros and ones it is Wilson's; milestones at 10 trials are covered at least as often."""
    assert bounded_mean([1.0] * 7 + [0.0] * 3) == wilson(7, 10)
    assert bounded_mean([0.5] * 10) == wilson(5, 10)
    rng = np.random.default_rng(2)
    inside = 0
    for shares in rng.dirichlet([1] * 5, 4000):
        low, high = bounded_mean((rng.choice(5, 10, p=shares) / 4).tolist())
        inside += low <= float(shares @ np.arange(5) / 4) <= high
    assert inside / 4000 >= 0.95
    for bad in ([], [1.2], [math.nan]):
        with pytest.raises(InputError, match=r"values in \[0, 1\]"):
            bounded_mean(bad)


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scipy a statistic that needs it names the extra; Wilson goes on working."""
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    with pytest.raises(ConfigError, match=r"pip install 'vlakern\[blind\]'"):
        beta(1, 2)
    assert wilson(1, 2)[0] > 0
