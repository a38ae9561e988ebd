"""A policy in its controller's own numbers drives a loop, and a prefix goes back to them."""

import numpy as np
import pytest

import vlakern
from vlakern.ops import _native
from vlakern.robot.native import NativeChunks, native_chunks
from vlakern.types import ActionPrefix

pytestmark = pytest.mark.skipif(_native.missing() is not None, reason="no native module")


def test_steps_add_up_from_what_was_commanded() -> None:
    """Not from the measured hand, which lags; and the gripper's number stays itself."""
    policy = vlakern.load("metaworld-small", device="cpu")
    chunks = native_chunks(policy)
    assert isinstance(chunks, NativeChunks)
    rng = np.random.default_rng(3)
    native = rng.uniform(-1, 1, (16, 4)).astype(np.float32)
    state, commanded = np.array([0, 0.5, 0.2, 1], np.float32), np.array([0.01, 0.52, 0.2, -1.0])
    found = chunks.to_commands(native, state, commanded)
    wanted = commanded[:3] + 0.01 * np.cumsum(native[:, :3].astype(np.float64), axis=0)
    np.testing.assert_allclose(found[:, :3], wanted, atol=1e-7)
    np.testing.assert_allclose(found[:, 3], native[:, 3], atol=1e-7)
    back = chunks.to_prefix(ActionPrefix(found, 3), state, commanded)
    assert back.frozen == 3
    np.testing.assert_allclose(back.actions, native, atol=1e-4)
    assert native_chunks(object()) is None
