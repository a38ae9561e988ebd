"""The blinding indices equal the published trial and are 0 and 1/2 under random guessing."""

from typing import Any

import numpy as np
import pytest

from vlakern.errors import InputError
from vlakern.trials import bang_index, guess_test, james_index, mean_bang_index


def test_published_trial() -> None:
    """A lipid trial of 277 + 139 patients (Bang, Ni and Davis 2004): 0.21, 0.01 and 0.75."""
    assert bang_index(82, 25, 170).index == pytest.approx(0.21, abs=5e-3)
    assert bang_index(29, 27, 83).index == pytest.approx(0.01, abs=5e-3)
    whole = james_index([[82, 25, 170], [27, 29, 83]])
    assert whole.index == pytest.approx(0.75, abs=5e-3)
    assert (whole.low, whole.high) == pytest.approx((0.705, 0.791), abs=1e-3)


def test_meaning_of_the_scale() -> None:
    """Always right, at random, always wrong, nobody knows."""
    assert bang_index(10, 0, 0).index == 1
    assert bang_index(5, 5, 0).index == 0
    assert bang_index(0, 10, 0).index == -1
    assert bang_index(3, 9, 4, models=4).index == 0
    assert bang_index(0, 0, 10).index == 0
    assert james_index([[10, 0, 0], [0, 10, 0]]).index == 0
    assert james_index([[5, 5, 0], [5, 5, 0]]).index == 0.5
    assert james_index([[0, 0, 10], [0, 0, 10]]).index == 1
    assert james_index([[4] * 4 + [0]] * 4).index == pytest.approx(0.5)


def test_ten_right_guesses_have_a_width() -> None:
    """All right in ten trials is not certainty."""
    assert bang_index(10, 0, 0).low < 0.6
    assert bang_index(10, 0, 0, models=4).low < 0.9
    assert bang_index(0, 10, 0, models=4).low >= -1 / 3


@pytest.mark.parametrize("models", [2, 4])
@pytest.mark.parametrize("n", [10, 40])
def test_bang_coverage(models: int, n: int) -> None:
    """Shares of right, wrong and unknown uniform on the simplex: 93 to 97 % of 5,000."""
    rng = np.random.default_rng(n + models)
    inside = 0
    for shares in rng.dirichlet([1, 1, 1], 5000):
        right, wrong, unknown = rng.multinomial(n, shares).tolist()
        found = bang_index(right, wrong, unknown, models)
        inside += found.low <= shares[0] - shares[1] / (models - 1) <= found.high
    assert 0.93 <= inside / 5000 <= 0.97


def test_james_error_is_the_resampled_one() -> None:
    """The delta method's width is that of 4,000 studies drawn from the same shares."""
    table = np.array([[82, 25, 170], [27, 29, 83]])
    rng = np.random.default_rng(1)
    drawn = rng.multinomial(416, table.ravel() / 416, 4000).reshape(-1, 2, 3)
    spread = np.std([james_index(one).index for one in drawn.tolist()])
    whole = james_index(table.tolist())
    assert (whole.high - whole.low) / 2 == pytest.approx(1.96 * spread, rel=0.05)


def test_guess_test_keeps_alpha_and_finds_a_leak() -> None:
    """2,000 studies with a favourite guess and a frequent answer: at most 5 %; a leak is found."""
    rng = np.random.default_rng(8)
    wrong = 0
    for _ in range(2000):
        truths = (rng.random(40) < 0.8).tolist()
        guesses = (rng.random(40) < 0.9).tolist()
        wrong += guess_test(guesses, truths, [0] * 20 + [1] * 20, resamples=199) <= 0.05
    assert wrong / 2000 <= 0.055
    truths = rng.integers(0, 3, 60).tolist()
    leak = [t if rng.random() < 0.6 else int(rng.integers(0, 3)) for t in truths]
    assert guess_test(leak, truths, [0] * 60) < 0.001


def test_mean_index_does_not_reward_the_likelier_answer() -> None:
    """Always "different" is 0 in the mean, though right nine times in ten."""
    parts = [bang_index(36, 0, 0), bang_index(0, 4, 0)]
    mean = mean_bang_index(parts)
    assert (mean.n, mean.index) == (40, 0)
    assert mean.low < 0 < mean.high
    assert bang_index(36, 4, 0).low > 0.5
    assert mean_bang_index(parts[:1]).low == pytest.approx(parts[0].low)


def test_named_guesses() -> None:
    """Guesses by name, None for "don't know", are the table of counts."""
    named = james_index({"a": {"a": 3, "b": 1, None: 2}, "b": {"b": 4}})
    assert named == james_index([[3, 1, 2], [0, 4, 0]])


@pytest.mark.parametrize(
    "call",
    [
        lambda: mean_bang_index([]),
        lambda: guess_test([1], [1, 2], [0]),
        lambda: bang_index(0, 0, 0),
        lambda: bang_index(1, -1, 0),
        lambda: bang_index(1, 1, 1, models=1),
        lambda: james_index([[1, 2, 3]]),
        lambda: james_index([[1, 2], [3, 4]]),
        lambda: james_index([[0, 0, 0], [0, 0, 0]]),
        lambda: james_index({"a": {"z": 1}, "b": {}}),
    ],
)
def test_refuses_impossible_guesses(call: Any) -> None:
    """What was expected and what was found are said."""
    with pytest.raises(InputError, match=r"expected .* found"):
        call()
