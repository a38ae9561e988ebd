"""What N trials can show equals a direct sum, and the known figure of ten trials."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import boschloo_exact

from vlakern.errors import InputError
from vlakern.trials import (
    first_crossing,
    paired_e_process,
    power,
    power_sentence,
    power_table,
    sequential_power,
    visible_gap,
    wilson,
)


def test_ten_trials_see_sixty_points() -> None:
    """N = 10, alpha 0.05, 80 % power, around 50 %: about 60 points, as the sentence says."""
    assert visible_gap(10) == pytest.approx(0.60, abs=0.011)
    assert "a gap of about 60 points" in power_sentence(10)


def test_power_equals_simulation() -> None:
    """20,000 simulated studies judged by scipy's own test."""
    rng = np.random.default_rng(3)
    won = rng.binomial(8, (0.85, 0.25), (20_000, 2))
    pairs, counts = np.unique(won, axis=0, return_counts=True)
    rejected = sum(
        count
        for (x, y), count in zip(pairs, counts, strict=True)
        if boschloo_exact([[x, y], [8 - x, 8 - y]]).pvalue <= 0.05
    )
    assert power(8, 8, 0.85, 0.25) == pytest.approx(rejected / 20_000, abs=0.01)


def test_gap_is_the_smallest() -> None:
    """The gap has the power asked for and half a point less has not."""
    for n in (5, 20, 50):
        gap = visible_gap(n)
        assert gap is not None
        assert power(n, n, 0.5 + gap / 2, 0.5 - gap / 2) >= 0.8
        less = gap - 0.005
        assert power(n, n, 0.5 + less / 2, 0.5 - less / 2) < 0.8


def test_corrections_and_looks_cost_power() -> None:
    """The sentence says what is left of it: 73 points in six pairs, 79 with a look at each pair."""
    six = power_sentence(10, pairs=6)
    assert "about 60 points" in six
    assert "about 73 points as one of 6 comparisons" in six
    assert "about 79 points" in power_sentence(10, sequential=True)
    assert "none as one of 6" in power_sentence(3, pairs=6)
    gaps = [visible_gap(20), visible_gap(20, alpha=0.01), visible_gap(20, sequential=True)]
    assert gaps[0] is not None
    assert all(gap is not None and gap > gaps[0] for gap in gaps[1:])


def test_sequential_power_equals_simulation() -> None:
    """20,000 simulated studies of 40 pairs: how many decide, and after how many pairs."""
    rng = np.random.default_rng(4)
    first, second = rng.random((20_000, 40)) < 0.8, rng.random((20_000, 40)) < 0.45
    stops = [first_crossing(row) for row in paired_e_process(first, second).different]
    found = sequential_power(40, 0.8, 0.45)
    assert found.power == pytest.approx(np.mean([s is not None for s in stops]), abs=0.01)
    assert found.mean_pairs == pytest.approx(np.mean([s or 40 for s in stops]), abs=0.3)


@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.2])
def test_sequential_error_is_exactly_below_alpha(alpha: float) -> None:
    """Equal rates, 300 looks: the exact chance of ever deciding, at 19 rates."""
    for rate in np.arange(1, 20) / 20:
        assert 0 < sequential_power(300, rate, rate, alpha).power <= alpha


def test_too_few_trials_are_said() -> None:
    """Two trials of each model cannot tell 0 from 100 %."""
    assert visible_gap(2) is None
    assert "not even 0 % against 100 %" in power_sentence(2)
    gaps = [row.gap for row in power_table((5, 10, 20, 50))]
    assert all(gap is not None for gap in gaps)
    assert gaps == sorted(gaps, key=lambda gap: -(gap or 0))
    assert power_table((10,))[0].half_width == pytest.approx(wilson(5, 10)[1] - 0.5)


@pytest.mark.parametrize(
    "call", [lambda: power(5, 5, 1.2, 0.1), lambda: visible_gap(0), lambda: visible_gap(5, 80)]
)
def test_refuses_impossible_plans(call: Any) -> None:
    """Percents, negative rates and no trials are caught."""
    with pytest.raises(InputError, match="expected"):
        call()
