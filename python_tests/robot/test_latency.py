"""The estimate of latency is recent, and a slow beginning is not taken for it."""

import numpy as np
import pytest

from vlakern.errors import ConfigError
from vlakern.robot.latency import Latency


def test_the_percentile_is_that_of_the_window() -> None:
    """Beside numpy's, with the definition of the smallest that 95 % do not pass."""
    drawn, latency = np.random.default_rng(3).gamma(2.0, 0.05, 400), Latency(60, warm_up=0)
    for i, one in enumerate(drawn, 1):
        latency.add(float(one))
        last = drawn[max(0, i - 60) : i]
        assert latency.p95 == np.quantile(last, 0.95, method="inverted_cdf")
    assert latency.summary()["max"] == drawn.max()


def test_a_first_inference_of_700_ms_is_not_the_latency() -> None:
    """LeRobot #4223: then 0.3 s each at 30 Hz are 9 actions, never the 21 of the first."""
    latency = Latency(warm_up=1)
    latency.add(0.7)
    assert (latency.delay_steps(30.0), latency.p95, len(latency)) == (0, 0.0, 1)
    for _ in range(100):
        latency.add(0.3)
        assert latency.delay_steps(30.0) == 9


@pytest.mark.parametrize(("before", "after"), [(0.05, 0.35), (0.35, 0.05)])
def test_a_step_is_followed_within_one_window(before: float, after: float) -> None:
    """Up and down; the maximum of all time would never come down."""
    latency = Latency(40, warm_up=0)
    for seconds in [before] * 200 + [after] * 40:
        latency.add(seconds)
    assert latency.p95 == after
    assert latency.delay_steps(20.0) == round(after * 20)


def test_one_outlier_in_twenty_is_no_latency() -> None:
    latency = Latency(20, warm_up=0)
    for seconds in [0.1] * 19 + [5.0]:
        latency.add(seconds)
    assert latency.p95 == 0.1
    latency.add(5.0)
    assert latency.p95 == 5.0


def test_a_clock_that_goes_backwards_is_not_fast() -> None:
    latency = Latency(warm_up=0)
    latency.add(-0.1)
    with pytest.raises(ConfigError, match="monotonic"):
        latency.delay_steps(20.0)


@pytest.mark.parametrize("wrong", [{"window": 0}, {"warm_up": -1}, {"share": 0.0}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="latency"):
        Latency(**wrong)  # pyright: ignore[reportArgumentType]
