"""Boschloo's and McNemar's tests equal scipy's and never reject a true null above alpha."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, binomtest, boschloo_exact, fisher_exact

from vlakern.errors import InputError
from vlakern.trials import boschloo, boschloo_table, mcnemar


@pytest.mark.parametrize(("n", "m"), [(4, 4), (10, 10), (7, 12)])
def test_boschloo_equals_scipy(n: int, m: int) -> None:
    """Scipy's search over the unknown rate finds the same maximum."""
    for x in range(0, n + 1, 2):
        for y in range(0, m + 1, 3):
            if 0 < x + y < n + m:
                expected = boschloo_exact([[x, y], [n - x, m - y]], n=64).pvalue
                assert boschloo(x, n, y, m) == pytest.approx(expected, rel=1e-3), (x, y)


def test_boschloo_published_value() -> None:
    """The job-satisfaction example of scipy's manual, one-sided p = 0.0356."""
    assert boschloo(74, 117, 31, 63) == pytest.approx(2 * 0.0355567, rel=1e-3)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (10, 10), (10, 30), (50, 50)])
def test_boschloo_size_is_at_most_alpha(n: int, m: int) -> None:
    """The exact rejection probability at 199 common rates, between the grid's own points."""
    table = boschloo_table(n, m)
    rates = np.linspace(0.0025, 0.9975, 199)
    first = binom.pmf(np.arange(n + 1), n, rates[:, None])
    second = binom.pmf(np.arange(m + 1), m, rates[:, None])
    for alpha in (0.01, 0.05, 0.1):
        size = np.einsum("ri,ij,rj->r", first, (table <= alpha).astype(float), second)
        assert size.max() <= alpha


def test_simulated_null_studies() -> None:
    """5,000 studies at each of nine rates: at most 5 % on average, nowhere above by 3 errors."""
    rng = np.random.default_rng(9)
    for n in (10, 50):
        table = boschloo_table(n, n)
        won = rng.binomial(n, np.arange(1, 10)[:, None, None] / 10, (9, 5000, 2))
        rejected = (table[won[..., 0], won[..., 1]] <= 0.05).mean(axis=1)
        assert rejected.mean() <= 0.05
        assert rejected.max() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 5000)


def test_boschloo_is_more_powerful_than_fisher() -> None:
    """No p-value is above twice the one-sided Fisher p-value, and some are well below."""
    table = boschloo_table(10, 10)
    fisher = np.ones((11, 11))
    for side in ("less", "greater"):
        for x, y in np.ndindex(11, 11):
            p = np.array(fisher_exact([[x, y], [10 - x, 10 - y]], side))[1]
            fisher[x, y] = min(fisher[x, y], 2 * p)
    assert (table <= fisher + 1e-12).all()
    near = np.abs(table - 0.05) < 0.03
    assert (table[near] < 0.7 * fisher[near]).any()


def test_boschloo_symmetries() -> None:
    """Swapping the samples or the outcome leaves the p-value, and no difference is never found."""
    table = boschloo_table(6, 9)
    assert table == pytest.approx(boschloo_table(9, 6).T, rel=1e-9)
    assert table == pytest.approx(table[::-1, ::-1], rel=1e-9)
    assert boschloo(0, 10, 0, 10) == boschloo(10, 10, 10, 10) == 1
    assert np.diag(boschloo_table(10, 10)).min() > 0.5


def test_mcnemar_equals_scipy_and_published_values() -> None:
    """The sign test on the decided pairs; Fagerland et al. (2013), table 1: 1 against 7 of 21."""
    for first in range(12):
        for second in range(12):
            if first + second:
                expected = binomtest(first, first + second).pvalue
                assert mcnemar(first, second).exact == pytest.approx(expected)
    found = mcnemar(1, 7)
    assert found.exact == pytest.approx(0.0703, abs=5e-5)
    assert found.mid_p == pytest.approx(0.0391, abs=5e-5)
    assert mcnemar(0, 0) == mcnemar(3, 3) == (1, 1)


def test_mcnemar_size() -> None:
    """Given any number of decided pairs exact keeps 5 %; mid-p does nearly over N = 20, 50, 100."""
    exact, mid = np.zeros(101), np.zeros(101)
    for n in range(1, 101):
        chances = binom.pmf(np.arange(n + 1), n, 0.5)
        found = [mcnemar(k, n - k) for k in range(n + 1)]
        exact[n] = chances @ [p.exact <= 0.05 for p in found]
        mid[n] = chances @ [p.mid_p <= 0.05 for p in found]
    assert exact.max() <= 0.05
    assert mid.mean() > exact.mean()
    for pairs in (20, 50, 100):
        for decided in np.arange(1, 20) / 20:
            weights = binom.pmf(np.arange(pairs + 1), pairs, decided)
            assert weights @ mid[: pairs + 1] <= 0.053


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, 0), (1.0, 5)])
def test_refuses_impossible_counts(successes: Any, n: int) -> None:
    """The sentence names both counts."""
    with pytest.raises(InputError, match="successes="):
        boschloo(successes, n, 1, 5)
    with pytest.raises(InputError, match="whole counts of pairs"):
        mcnemar(-1, 3)
    with pytest.raises(InputError, match="at most 300 trials"):
        boschloo(1, 301, 1, 5)
