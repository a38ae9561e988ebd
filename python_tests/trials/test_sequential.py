"""E-processes have expectation at most 1 under every null, and looking often is harmless."""

import math
from itertools import product

import numpy as np
import pytest
from scipy.special import betaln

from vlakern.errors import InputError
from vlakern.trials import (
    anytime_p,
    boschloo_table,
    confidence_sequence,
    first_crossing,
    paired_e_process,
    two_sample_e_process,
)

LOG_20 = math.log(20)


def outcomes(pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Every sequence of ``pairs`` pairs of outcomes, ``[4^pairs, pairs]`` each."""
    cells = np.array(list(product((0, 1, 2, 3), repeat=pairs)))
    return cells // 2, cells % 2


def chances(first: np.ndarray, second: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """The probability of each sequence; ``rates`` are ``[pairs, 2]``."""
    one = np.where(first == 1, rates[:, 0], 1 - rates[:, 0])
    other = np.where(second == 1, rates[:, 1], 1 - rates[:, 1])
    return (one * other).prod(axis=1)


@pytest.mark.parametrize("seed", range(8))
def test_expectation_is_at_most_one(seed: int) -> None:
    """Summed over all sequences of five pairs whose rates change from pair to pair."""
    rng = np.random.default_rng(seed)
    first, second = outcomes(5)
    found = paired_e_process(first, second)
    blocks = two_sample_e_process(first, second)
    equal = np.repeat(rng.random((5, 1)), 2, axis=1)
    weight = chances(first, second, equal)
    assert weight @ np.exp(found.different[:, -1]) == pytest.approx(1)
    assert weight @ np.exp(found.first_better[:, -1]) == pytest.approx(1)
    assert weight @ np.exp(blocks[:, -1]) <= 1 + 1e-12
    worse = np.sort(rng.random((5, 2)), axis=1)
    weight = chances(first, second, worse)
    assert weight @ np.exp(found.first_better[:, -1]) <= 1 + 1e-12
    # The other side's null is false here, so that its e-value may grow.
    assert weight @ np.exp(found.second_better[:, -1]) > 1


def test_closed_form() -> None:
    """2^(a+b) B(a + 1/2, b + 1/2) / B(1/2, 1/2), and the two sides' mean is the two-sided one."""
    first, second = [1, 1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 0, 0, 0]
    found = paired_e_process(first, second)
    expected = 5 * math.log(2) + betaln(4.5, 1.5) - betaln(0.5, 0.5)
    assert found.different[-1] == pytest.approx(expected)
    sides = np.exp(found.first_better) + np.exp(found.second_better)
    assert sides / 2 == pytest.approx(np.exp(found.different))


def test_seven_wins_in_a_row_are_enough() -> None:
    """The first crossing of 20, and the p-value that stays after the stop."""
    found = paired_e_process([1] * 10, [0] * 10)
    assert first_crossing(found.different) == 7
    assert first_crossing(found.second_better) is None
    assert anytime_p(found.different[:7]) == pytest.approx(1 / 26.8125)
    assert anytime_p([-1.0, -2.0]) == anytime_p([]) == 1


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8, None])
def test_looking_after_every_pair_keeps_alpha(rate: float | None) -> None:
    """5,000 null studies, 200 looks each; None: each pair's rate is its own."""
    rng = np.random.default_rng(17)
    rates = rng.random((5000, 200)) if rate is None else np.full((5000, 200), rate)
    first, second = (rng.random((5000, 200)) < rates for _ in range(2))
    found = paired_e_process(first, second)
    worse = paired_e_process(rng.random((5000, 200)) < 0.9 * rates, second)
    for log_e in (found.different, found.first_better, worse.first_better):
        assert (log_e >= LOG_20).any(axis=1).mean() <= 0.05
    assert (two_sample_e_process(first, second) >= LOG_20).any(axis=1).mean() <= 0.05


def test_composite_null_on_a_grid() -> None:
    """45 pairs of rates with the first not better, 5,000 studies of 40 looks each: at most 5 %."""
    rng = np.random.default_rng(23)
    rates = np.arange(1, 10) / 10
    for low in rates:
        for high in rates[rates >= low]:
            first, second = rng.random((5000, 40)) < low, rng.random((5000, 40)) < high
            log_e = paired_e_process(first, second).first_better
            assert (log_e >= LOG_20).any(axis=1).mean() <= 0.05


def test_looking_often_with_a_fixed_test_does_not() -> None:
    """The same peeking with Boschloo's test finds a difference that is not there above 10 %."""
    rng = np.random.default_rng(18)
    won = np.cumsum(rng.random((2, 2000, 100)) < 0.5, axis=-1)
    wrong = np.zeros(2000, dtype=bool)
    for n in range(10, 101, 5):
        wrong |= boschloo_table(n, n)[won[0, :, n - 1], won[1, :, n - 1]] <= 0.05
    assert wrong.mean() > 0.10


def test_finds_what_is_there() -> None:
    """90 against 40 %: nearly always found within 60 pairs, in under 25 on average."""
    rng = np.random.default_rng(19)
    first, second = rng.random((2000, 60)) < 0.9, rng.random((2000, 60)) < 0.4
    log_e = paired_e_process(first, second).different
    stops = [first_crossing(row) for row in log_e]
    assert np.mean([stop is not None for stop in stops]) > 0.95
    assert np.mean([stop or 60 for stop in stops]) < 25


def test_confidence_sequence_holds_at_every_look() -> None:
    """5,000 streams of 40 trials at three rates: the bounds ever miss in at most 5 %."""
    bounds = {(s, n): confidence_sequence(s, n) for n in range(1, 41) for s in range(n + 1)}
    rng = np.random.default_rng(20)
    low, high = np.zeros((41, 41)), np.ones((41, 41))
    for (s, n), (least, most) in bounds.items():
        low[s, n], high[s, n] = least, most
    looks = np.arange(1, 41)
    for rate in (0.1, 0.5, 0.93):
        won = np.cumsum(rng.random((5000, 40)) < rate, axis=1)
        missed = (low[won, looks] > rate) | (high[won, looks] < rate)
        assert missed.any(axis=1).mean() <= 0.05


def test_confidence_sequence_ends() -> None:
    """0 and n successes have exact ends; bounds mirror and hold the observed rate."""
    for n in (1, 2, 10, 57):
        assert confidence_sequence(0, n)[0] == 0
        assert confidence_sequence(n, n)[1] == 1
        for s in range(n + 1):
            low, high = confidence_sequence(s, n)
            assert low <= s / n <= high
            assert confidence_sequence(n - s, n) == pytest.approx((1 - high, 1 - low))


def test_refuses_what_is_no_outcome() -> None:
    """Progress in place of outcomes, and streams that do not match, are named."""
    with pytest.raises(InputError, match="0 or 1"):
        paired_e_process([0.5], [1])
    with pytest.raises(InputError, match=r"\(2,\) and \(1,\)"):
        two_sample_e_process([1, 0], [1])
    with pytest.raises(InputError, match="alpha between 0 and 1"):
        first_crossing([0.0], 5)
    with pytest.raises(InputError, match="prior above 0"):
        two_sample_e_process([1], [0], prior=0)
