"""Cohen's kappa equals a published table, and its interval covers at small samples."""

import numpy as np
import pytest

from vlakern.errors import InputError
from vlakern.trials import cohen_kappa


def test_published_table() -> None:
    """Fleiss, Statistical Methods for Rates and Proportions, table 18.1: kappa 0.68."""
    cells = [[75, 1, 4], [5, 4, 1], [0, 0, 10]]
    pairs = [(i, j) for i, row in enumerate(cells) for j, n in enumerate(row) for _ in range(n)]
    found = cohen_kappa([first for first, _ in pairs], [second for _, second in pairs])
    assert found.agreement == 0.89
    assert found.kappa == pytest.approx(0.6765, abs=5e-5)
    assert found.standard_error == pytest.approx(0.0877, abs=5e-5)


def test_ends() -> None:
    """Perfect agreement in ten trials keeps a lower bound below 1; one verdict alone gives none."""
    perfect = cohen_kappa([0, 1] * 5, [0, 1] * 5)
    assert perfect.kappa == 1 == perfect.high
    assert perfect.low is not None
    assert perfect.low < 0.5
    same = cohen_kappa([1] * 10, [1] * 10)
    assert (same.agreement, same.kappa, same.low) == (1, None, None)
    opposite = cohen_kappa([0, 1] * 5, [1, 0] * 5)
    assert opposite.kappa == pytest.approx(-1)


@pytest.mark.parametrize("n", [10, 40])
def test_coverage(n: int) -> None:
    """Over random judges the interval holds the true kappa in at least 93 % of 2,000 studies."""
    rng = np.random.default_rng(n)
    inside = told = 0
    for share, first, second in rng.random((2000, 3)) * [1, 0.3, 0.3]:
        truth = rng.random(n) < share
        one, other = truth ^ (rng.random(n) < first), truth ^ (rng.random(n) < second)
        found = cohen_kappa(one.tolist(), other.tolist())
        if found.low is None or found.high is None:
            continue
        both = share * (1 - first) * (1 - second) + (1 - share) * first * second
        yes = [share * (1 - e) + (1 - share) * e for e in (first, second)]
        chance = yes[0] * yes[1] + (1 - yes[0]) * (1 - yes[1])
        agreed = 1 + 2 * both - yes[0] - yes[1]
        inside += found.low <= (agreed - chance) / (1 - chance) <= found.high
        told += 1
    assert told > 1900
    assert 0.93 <= inside / told <= 0.99


def test_refuses_unequal_lists() -> None:
    """Two lengths and no trial are named."""
    with pytest.raises(InputError, match="3 and 2"):
        cohen_kappa([1, 0, 1], [1, 0])
    with pytest.raises(InputError, match="0 and 0"):
        cohen_kappa([], [])
