"""Chunks on the clock are what the executor sends, and averages are those of the paper."""

import numpy as np
import pytest

from vlakern.errors import ConfigError
from vlakern.ops import _native
from vlakern.robot.chunks import Ensemble, Placed, prefix_at

MS = 1_000_000
STEP = 50 * MS


def placed(begin: int = 0, steps: int = 8, held: tuple[int, ...] = ()) -> Placed:
    rng = np.random.default_rng(begin % 1000 + steps)
    return Placed(rng.normal(size=(steps, 3)), begin, STEP, held)


@pytest.mark.skipif(_native.missing() is not None, reason="no native module")
def test_a_placed_chunk_says_what_the_native_executor_sends() -> None:
    """Tick for tick, between its steps, at its ends and where a dimension is held."""
    wide = [[-9.0] * 3, [9.0] * 3, [1e4] * 3, [], []]
    rates = {"tick_rate": 200.0, "policy_rate": 20.0, "most_steps": 64.0}
    times = {**rates, "stop_after": 10.0, "fault_after": 20.0}
    core = _native.cpu_module().ExecutorCore(wide, times, [1], [0.0, 0.0, 0.0])
    chunk, now = placed(begin=10**9, held=(1,)), 10**9
    core.submit(chunk.actions_HJ.ctypes.data, *chunk.actions_HJ.shape, now, now)
    for _ in range(100):
        _, _, _, _, position, _ = core.tick(now)
        np.testing.assert_allclose(position, chunk.at(np.array([now]))[0], atol=1e-12)
        now += 5 * MS


def test_a_prefix_is_what_the_robot_goes_on_to_do() -> None:
    """From the observation's time on, until the chunk is over; then there is none."""
    running = placed(begin=7 * STEP)
    prefix = prefix_at(running, 10 * STEP, delay=2)
    assert prefix is not None
    np.testing.assert_array_equal(prefix.actions, running.actions_HJ[3:])
    assert prefix.frozen == 2
    between = prefix_at(running, 13 * STEP + STEP // 2, delay=4)
    assert between is not None
    assert between.frozen == 2  # no more than there are
    half = (running.actions_HJ[6] + running.actions_HJ[7]) / 2
    np.testing.assert_allclose(between.actions, [half, running.actions_HJ[7]])
    assert prefix_at(running, 15 * STEP, delay=2) is None
    assert prefix_at(running, 10 * STEP, delay=0) is None


@pytest.mark.parametrize("m", [0.0, 0.01, 0.7])
def test_an_ensemble_weighs_as_the_paper_says(m: float) -> None:
    """exp(-m·i), i = 0 for the oldest, beside a loop over all chunks and times."""
    ensemble, chunks = Ensemble(m, held=[2]), []
    for k in range(6):
        chunks.append(placed(begin=2 * k * STEP, held=(2,)))
        found = ensemble.add(chunks[-1])
        for h in range(8):
            when = (2 * k + h) * STEP
            says = [
                c.actions_HJ[(when - c.begin_ns) // STEP]
                for c in chunks
                if c.begin_ns <= when < c.end_ns
            ]
            weights = np.exp(-m * np.arange(len(says)))
            wanted = (weights[:, None] * np.array(says)).sum(0) / weights.sum()
            np.testing.assert_allclose(found[h, :2], wanted[:2])
            assert found[h, 2] == chunks[-1].actions_HJ[h, 2]


def test_an_ensemble_forgets_and_moves() -> None:
    ensemble = Ensemble(0.1)
    first, second = placed(0), placed(4 * STEP)
    ensemble.add(first)
    ensemble.move_last(4 * STEP)
    both = (first.actions_HJ + np.exp(-0.1) * second.actions_HJ) / (1 + np.exp(-0.1))
    np.testing.assert_allclose(ensemble.add(second), both)
    ensemble.clear()
    np.testing.assert_array_equal(ensemble.add(second), second.actions_HJ)
    ensemble.drop_last()
    np.testing.assert_array_equal(ensemble.add(first), first.actions_HJ)
    with pytest.raises(ConfigError, match="ensemble"):
        Ensemble(-1.0)
