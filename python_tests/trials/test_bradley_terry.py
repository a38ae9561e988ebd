"""Strengths equal a published season, cover, and are refused where they do not exist."""

import math
from itertools import combinations

import numpy as np
import pytest

from vlakern.errors import InputError
from vlakern.trials import bradley_terry, bradley_terry_blocks

TEAMS = ("Milwaukee", "Detroit", "Toronto", "New York", "Boston", "Cleveland", "Baltimore")
# Games that the row won against the column, American League 1987 (Agresti, table 10.10).
SEASON = (
    (0, 7, 9, 7, 7, 9, 11),
    (6, 0, 7, 5, 11, 9, 9),
    (4, 6, 0, 7, 7, 8, 12),
    (6, 8, 6, 0, 6, 7, 10),
    (6, 2, 6, 7, 0, 7, 12),
    (4, 4, 5, 6, 6, 0, 6),
    (2, 4, 1, 3, 1, 7, 0),
)


def table(names: tuple[str, ...], rows: tuple[tuple[int, ...], ...]) -> dict[tuple[str, str], int]:
    return {
        (one, other): rows[i][j]
        for i, one in enumerate(names)
        for j, other in enumerate(names)
        if i != j
    }


def test_published_season() -> None:
    """Agresti's estimates relative to Baltimore and R's BradleyTerry2 standard errors."""
    found = bradley_terry(TEAMS, table(TEAMS, SEASON))
    strength = {row.name: row.log_strength for row in found.strengths}
    relative = [strength[team] - strength["Baltimore"] for team in TEAMS[:-1]]
    assert relative == pytest.approx([1.5814, 1.4364, 1.2945, 1.2476, 1.1077, 0.6839], abs=5e-5)
    cov = found.covariance
    errors = [math.sqrt(cov[i, i] + cov[6, 6] - 2 * cov[i, 6]) for i in range(6)]
    assert errors == pytest.approx([0.3433, 0.3396, 0.3367, 0.3359, 0.3339, 0.3319], abs=5e-5)
    assert [row.name for row in found.strengths] == list(TEAMS)


def test_two_models_are_the_log_odds() -> None:
    """With two models the difference is the log-odds; equal ties both ways change nothing."""
    found = bradley_terry(("a", "b"), {("a", "b"): 12, ("b", "a"): 4})
    assert found.strengths[0].log_strength * 2 == pytest.approx(math.log(3))
    tied = bradley_terry(("a", "b"), {("a", "b"): 12, ("b", "a"): 4}, {("a", "b"): 8})
    # Davidson: nu = ties / sqrt(wins · losses)
    assert tied.tie == pytest.approx(8 / math.sqrt(48))


@pytest.mark.parametrize("ties", [False, True])
def test_interval_coverage(ties: bool) -> None:
    """Four models, 40 comparisons of each two: 93 to 97 % over 2,000 simulated studies."""
    names, truth, nu = ("a", "b", "c", "d"), np.array([0.6, 0.2, -0.1, -0.7]), 0.7 * ties
    rng = np.random.default_rng(5 + ties)
    inside = total = 0
    for _ in range(2000):
        wins, drawn = {}, {}
        for i, j in combinations(range(4), 2):
            weight = np.exp([truth[i], truth[j], (truth[i] + truth[j]) / 2]) * [1, 1, nu]
            first, second, equal = rng.multinomial(40, weight / weight.sum()).tolist()
            wins |= {(names[i], names[j]): first, (names[j], names[i]): second}
            drawn[names[i], names[j]] = equal
        for row in bradley_terry(names, wins, drawn).strengths:
            inside += row.low <= truth[names.index(row.name)] <= row.high
            total += 1
    assert 0.93 <= inside / total <= 0.97


def blocks(rates: np.ndarray, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Wins and ties of every pair in ``n`` blocks of one trial of each model."""
    won = rng.random((n, len(rates))) < rates
    first, second = won[:, :, None], won[:, None, :]
    tied = np.triu(np.ones((len(rates), len(rates))), 1) * (first == second)
    return (first & ~second).astype(float), tied


def test_blocks_cover_though_comparisons_share_trials() -> None:
    """Four models, 20 blocks: 92 to 98 % of 200 simulated studies."""
    names, rates = ("a", "b", "c", "d"), np.array([0.8, 0.6, 0.5, 0.3])
    rng = np.random.default_rng(21)

    def strengths(n: int) -> list[tuple[float, float, float]]:
        won, tied = blocks(rates, n, rng)
        found = bradley_terry_blocks(names, won, tied, [0] * n, resamples=200)
        rows = {row.name: (row.log_strength, row.low, row.high) for row in found.strengths}
        return [rows[name] for name in names]

    won, tied = blocks(rates, 100_000, rng)
    totals = [dict(np.ndenumerate(table.sum(axis=0))) for table in (won, tied)]
    wins, ties = (
        {(names[i], names[j]): int(n) for (i, j), n in one.items() if n} for one in totals
    )
    large = {row.name: row.log_strength for row in bradley_terry(names, wins, ties).strengths}
    inside = [
        low <= large[name] <= high
        for _ in range(200)
        for name, (_, low, high) in zip(names, strengths(20), strict=True)
    ]
    assert 0.92 <= np.mean(inside) <= 0.98


def test_blocks_have_the_strengths_of_their_sum() -> None:
    """The estimate is that of the summed table; the same seed gives the same bounds."""
    names, rng = ("a", "b", "c"), np.random.default_rng(22)
    won, tied = blocks(np.array([0.9, 0.5, 0.2]), 30, rng)
    found = bradley_terry_blocks(names, won, tied, [0] * 30)
    wins, ties = (
        {(names[i], names[j]): int(n) for (i, j), n in np.ndenumerate(t.sum(axis=0)) if i != j}
        for t in (won, tied)
    )
    whole = bradley_terry(names, wins, ties, prior=0.5)
    for row, expected in zip(found.strengths, whole.strengths, strict=True):
        assert row.log_strength == expected.log_strength
        assert row.low <= expected.low
    again = bradley_terry_blocks(names, won, tied, [0] * 30)
    assert again.strengths == found.strengths
    alone = bradley_terry_blocks(names, won, tied, list(range(30)))
    assert alone.strengths == whole.strengths


def test_refuses_models_that_nothing_connects() -> None:
    """Both sides are named."""
    wins = {("a", "b"): 3, ("b", "a"): 2, ("c", "d"): 1, ("d", "c"): 1}
    with pytest.raises(InputError, match=r"no chain of comparisons connects a, b with c, d"):
        bradley_terry(("a", "b", "c", "d"), wins, prior=0.5)


def test_refuses_a_model_that_never_lost_unless_a_prior_is_given() -> None:
    """The sentence names the models and the prior that helps, and with it there is an estimate."""
    wins = {("a", "b"): 5, ("a", "c"): 5, ("b", "c"): 3, ("c", "b"): 2}
    with pytest.raises(InputError, match="a never lost to b, c"):
        bradley_terry(("a", "b", "c"), wins)
    found = bradley_terry(("a", "b", "c"), wins, prior=0.5)
    assert found.strengths[0].name == "a"
    assert math.isfinite(found.strengths[0].high)


def test_refuses_ties_alone_and_strangers() -> None:
    """Nothing but ties, an unknown name and a model against itself are named."""
    with pytest.raises(InputError, match="every comparison is a tie"):
        bradley_terry(("a", "b"), {}, {("a", "b"): 5})
    with pytest.raises(InputError, match="'z'"):
        bradley_terry(("a", "b"), {("a", "z"): 1})
    with pytest.raises(InputError, match="at least two models"):
        bradley_terry(("a",), {})
    with pytest.raises(InputError, match=r"shape \(2, 3, 3\)"):
        bradley_terry_blocks(("a", "b", "c"), np.zeros((3, 3)), np.zeros((3, 3)), [0, 0])
