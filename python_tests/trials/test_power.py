"""What N trials can show equals a direct sum, and the known figure of ten trials."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import boschloo_exact

from vlakern.errors import InputError
from vlakern.trials import power, power_sentence, power_table, visible_gap, wilson


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
