"""The stratified tests equal R's published output and keep alpha over uneven strata."""

import math

import numpy as np
import pytest
from scipy.stats import fisher_exact
from scipy.stats.contingency import odds_ratio

from vlakern.errors import InputError
from vlakern.trials import (
    boschloo_table,
    cochran_mantel_haenszel,
    holm,
    risk_difference,
    stratified_exact,
)

# Admissions of men and women to six departments (R's UCBAdmissions).
BERKELEY = [
    (512, 825, 89, 108),
    (353, 560, 17, 25),
    (120, 325, 202, 593),
    (138, 417, 131, 375),
    (53, 191, 94, 393),
    (22, 373, 24, 341),
]
# Rabbits cured by penicillin at five doses, at once and delayed (Mantel 1963; R's manual).
RABBITS = [(0, 6, 0, 5), (3, 6, 0, 6), (6, 6, 2, 6), (5, 6, 6, 6), (2, 2, 5, 5)]


def test_published_values() -> None:
    """R's mantelhaen.test on both data sets, with and without the continuity correction."""
    corrected = cochran_mantel_haenszel(BERKELEY)
    assert corrected.statistic == pytest.approx(1.4269, abs=5e-5)
    assert corrected.p == pytest.approx(0.2323, abs=5e-5)
    bounds = (corrected.odds_ratio, corrected.low, corrected.high)
    assert bounds == pytest.approx((0.9046968, 0.7719074, 1.0603298), abs=5e-8)
    assert cochran_mantel_haenszel(BERKELEY, correct=False).p == pytest.approx(0.2169, abs=5e-5)
    rabbits = cochran_mantel_haenszel(RABBITS)
    assert rabbits.statistic == pytest.approx(3.9286, abs=5e-5)
    assert (rabbits.odds_ratio, rabbits.low, rabbits.high) == pytest.approx(
        (7.0, 1.026713, 47.725133), abs=5e-6
    )
    assert stratified_exact(RABBITS) == pytest.approx(0.03994, abs=5e-6)


def test_one_stratum_is_fisher() -> None:
    """With one stratum the exact p-value is scipy's Fisher test, the odds ratio the sample's."""
    for x in range(8):
        for y in range(10):
            _, expected = fisher_exact([[x, 7 - x], [y, 9 - y]])
            assert stratified_exact([(x, 7, y, 9)]) == pytest.approx(expected)
    sample = odds_ratio([[4, 3], [2, 7]], kind="sample").statistic
    assert cochran_mantel_haenszel([(4, 7, 2, 9)]).odds_ratio == pytest.approx(sample)


def test_risk_difference_of_one_stratum_is_the_textbooks() -> None:
    """Sato's variance with one stratum is the sum of the two binomial variances."""
    estimate, low, high = risk_difference([(30, 50, 20, 50)])
    half = 1.959964 * math.sqrt((0.6 * 0.4 + 0.4 * 0.6) / 50)
    assert (estimate, low, high) == pytest.approx((0.2, 0.2 - half, 0.2 + half), abs=1e-6)


def test_simpsons_reversal_is_not_fallen_for() -> None:
    """One model is better in both groups although its pooled rate is lower."""
    strata = [(9, 10, 70, 100), (30, 100, 1, 10)]
    pooled = (39 / 110, 71 / 110)
    assert pooled[0] < pooled[1]
    assert risk_difference(strata)[0] > 0
    assert (cochran_mantel_haenszel(strata).odds_ratio or 0) > 1


def test_simulated_null_studies_keep_alpha() -> None:
    """5,000 null studies over three strata of very different rates: at most 5 % rejected."""
    rng = np.random.default_rng(11)
    rates = rng.random((5000, 3, 1))
    won = rng.binomial(10, np.broadcast_to(rates, (5000, 3, 2)))
    rejected = 0
    for study in won.tolist():
        rejected += stratified_exact([(x, 10, y, 10) for x, y in study]) <= 0.05
    assert rejected / 5000 <= 0.05


def test_family_of_null_comparisons_keeps_alpha() -> None:
    """5,000 studies of four equal models: any pair told apart by Holm in at most 5 %."""
    rng = np.random.default_rng(12)
    table = boschloo_table(10, 10)
    pairs = [(i, j) for i in range(4) for j in range(i)]
    for rate in (0.5, 0.8):
        won = rng.binomial(10, rate, (5000, 4))
        p_values = np.stack([table[won[:, i], won[:, j]] for i, j in pairs], axis=1)
        wrong = sum(min(holm(row)) <= 0.05 for row in p_values.tolist())
        assert wrong / 5000 <= 0.05
        assert (p_values <= 0.05).any(axis=1).mean() > 0.05


def test_nothing_to_tell() -> None:
    """Strata that are all failures give p = 1 and no odds ratio; one-sided ones no interval."""
    nothing = cochran_mantel_haenszel([(0, 10, 0, 10)])
    assert (nothing.p, nothing.odds_ratio) == (1, None)
    assert stratified_exact([(0, 10, 0, 10), (5, 5, 5, 5)]) == pytest.approx(1)
    sure = cochran_mantel_haenszel([(10, 10, 0, 10)])
    assert (sure.odds_ratio, sure.low) == (math.inf, None)


def test_refuses_impossible_strata() -> None:
    """No stratum, an empty one and impossible counts are named."""
    with pytest.raises(InputError, match="at least one stratum"):
        stratified_exact([])
    with pytest.raises(InputError, match="n=0"):
        cochran_mantel_haenszel([(0, 0, 1, 2)])
    with pytest.raises(InputError, match="successes=3"):
        risk_difference([(1, 2, 3, 2)])
