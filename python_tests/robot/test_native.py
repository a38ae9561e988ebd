"""A policy in its controller's own numbers drives a loop, and a prefix goes back to them."""

import time

import numpy as np
import pytest

import vlakern
from vlakern.ops import _native
from vlakern.robot import ExecutorConfig, Limits, Loop, LoopConfig, SimulatedArm
from vlakern.robot.native import NativeChunks, native_chunks
from vlakern.types import ActionChunk, ActionPrefix, Observation

pytestmark = pytest.mark.skipif(_native.missing() is not None, reason="no native module")


def test_steps_add_up_from_what_was_commanded() -> None:
    """Not from the measured hand, which lags; the first row is where it is, and the gripper's
    number is for the time from its row to the next."""
    policy = vlakern.load("metaworld-small", device="cpu")
    chunks = native_chunks(policy)
    assert isinstance(chunks, NativeChunks)
    rng = np.random.default_rng(3)
    native = rng.uniform(-1, 1, (16, 4)).astype(np.float32)
    state, commanded = np.array([0, 0.5, 0.2, 1], np.float32), np.array([0.01, 0.52, 0.2, -1.0])
    found = chunks.to_commands(native, state, commanded)
    wanted = commanded[:3] + 0.01 * np.cumsum(native[:, :3].astype(np.float64), axis=0)
    np.testing.assert_allclose(found[1:, :3], wanted, atol=1e-7)
    np.testing.assert_array_equal(found[0, :3], commanded[:3])
    np.testing.assert_allclose(found[:-1, 3], native[:, 3], atol=1e-7)
    assert found[-1, 3] == found[-2, 3]
    back = chunks.to_prefix(ActionPrefix(found, 3), state, commanded)
    assert back is not None
    assert back.frozen == 3
    np.testing.assert_allclose(back.actions, native, atol=1e-4)
    short = chunks.to_prefix(ActionPrefix(found[:3], 3), state, commanded)
    assert short is not None
    assert (len(short.actions), short.frozen) == (2, 2)
    assert chunks.to_prefix(ActionPrefix(found[:1], 1), state, commanded) is None
    assert native_chunks(object()) is None


class Drift:
    """Always the same step along x, in the controller's own numbers."""

    frame = "native"

    def __init__(self, latency: float) -> None:
        policy = vlakern.load("metaworld-small", device="cpu")
        self.robot, self.control, self.latency = policy.robot, policy.control, latency

    def act(self, observation: Observation, *, prefix: ActionPrefix | None = None) -> ActionChunk:
        time.sleep(self.latency)
        chunk = np.zeros((16, 4), np.float32)
        chunk[:, 0] = 0.3
        return ActionChunk(chunk)


@pytest.mark.parametrize(("execute", "latency", "ensemble"), [(2, 0.0, None), (4, 0.4, 0.1)])
def test_a_constant_step_is_a_constant_speed(
    execute: int, latency: float, ensemble: float | None
) -> None:
    """However often chunks are joined: none begins a step ahead of the one before, which would be
    50 % too fast for 2 actions a chunk and 25 % for 4. A busy machine starves, and is slower."""
    arm = SimulatedArm(start=(0.0, 0.6, 0.2, -1.0))
    limits = Limits([-9.0] * 3 + [-1.0], [9.0] * 3 + [1.0], [0.05] * 3 + [400.0])
    rates = ExecutorConfig(5.0, 200.0, 17, held=(3,))
    config = LoopConfig(execute, warm_up=0, probes=1, ensemble=ensemble)
    report = Loop(arm, Drift(latency), limits, rates, config).run(3.5)
    assert report.ended == "time", report
    times = np.array([command.time_ns for command in arm.sent]) * 1e-9
    x = np.array([command.position_J[0] for command in arm.sent])
    middle = (times > times[0] + 0.5) & (times < times[0] + 3.4)
    speed = np.polyfit(times[middle], x[middle], 1)[0]
    assert 0.3 * 0.003 * 5 < speed < 1.15 * 0.003 * 5
