"""Bound decoding: the same commands as unbound, on memory that is used again, from many threads."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from vlakern.errors import InputError
from vlakern.space import ActionSpace, Normalizer, VectorStats, robot_and_slots
from vlakern.space.decoder import MOST_IDLE, base_rows
from vlakern.space.embodiment import Field
from vlakern.space.hands import Hand
from vlakern.space.rotation import WIDTH, Kind, Rotation
from vlakern.space.slots import Slot
from vlakern.testing import interleave

H = 5


@pytest.fixture(scope="module")
def space() -> ActionSpace:
    """A Panda whose actions are relative to its hand."""
    robot, slots = robot_and_slots("robosuite_panda")
    stats = VectorStats.units(slots.names())
    plain = Normalizer("state", "zscore", stats), Normalizer("action", "zscore", stats)
    return ActionSpace(robot, slots, slots, "eef_relative", *plain)


def problem(rows: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Chunks and states of a Panda."""
    rng = np.random.default_rng(seed)
    state = rng.normal(size=(rows, 8)).astype(np.float32)
    state[:, 3:7] /= np.linalg.norm(state[:, 3:7], axis=1, keepdims=True)
    return torch.from_numpy(rng.normal(size=(rows, H, 200)).astype(np.float32)), state


def test_a_decoder_that_is_used_again_gives_new_commands(space: ActionSpace) -> None:
    """Equal to those of a fresh space, in memory of their own, for batch sizes in turn."""
    problems = [problem(rows, seed) for seed in range(3) for rows in (1, 3, 2)]
    found = [space.decode(*one) for one in problems]
    maps, normalizers = (space._state_map, space._action_map), (space._state, space._action)
    for one, commands in zip(problems, found, strict=True):
        fresh = ActionSpace(space.robot, *maps, space.frame, *normalizers)
        np.testing.assert_array_equal(commands, fresh.decode(*one))


def test_inference_mode_leaves_no_trace(space: ActionSpace) -> None:
    """A decoder that was made inside serves outside, and the other way round."""
    one, two = problem(4, 1), problem(5, 2)
    with torch.inference_mode():
        first = space.decode(*one)
    np.testing.assert_array_equal(space.decode(*one), first)
    second = space.decode(*two)
    with torch.inference_mode():
        np.testing.assert_array_equal(space.decode(two[0] * 1.0, two[1]), second)


def test_threads_do_not_share_a_decoder(space: ActionSpace) -> None:
    """Sixteen threads at once get what they get one after another."""
    problems = [problem(2, seed) for seed in range(200)]
    expected = [space.decode(*one) for one in problems]
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda one: space.decode(*one), problems))
    for commands, alone in zip(found, expected, strict=True):
        np.testing.assert_array_equal(commands, alone)


def test_only_a_few_batch_sizes_are_kept(space: ActionSpace) -> None:
    """A rollout whose batches shrink does not fill the memory."""
    for rows in range(1, 3 * MOST_IDLE):
        space.decode(*problem(rows, 0))
    assert len(space._decoders._idle) <= MOST_IDLE


@pytest.mark.parametrize("kind", WIDTH)
def test_base_rows_are_the_rotations_of_the_state(kind: Kind) -> None:
    """Without torch for the usual kinds, and equal to the batched mathematics for all; at rest and
    at half a turn too."""
    rng = np.random.default_rng(0)
    turns = np.concatenate([rng.normal(size=(6, 3)), np.zeros((1, 3)), [[np.pi, 0, 0]]])
    turns = np.concatenate([turns, [[1e-9, 0, 0]]])
    values = Rotation.read(torch.from_numpy(turns), "axis_angle").write(kind).numpy()
    state = np.concatenate([rng.normal(size=(len(turns), 3)), values], axis=1)
    slot: Any = Slot("h_position", "m", 0, 3, kind="position")
    hand = Hand(
        Field("h_position", (0, 3)), Field("h_rotation", (3, state.shape[1]), kind), slot, slot
    )
    out = np.full((len(state), 1, 7), np.nan, np.float32)
    base_rows([hand], state, out)
    exact = hand.base_row(torch.from_numpy(state)).numpy()
    gap = np.minimum(
        np.abs(out[:, 0] - exact), np.abs(out[:, 0, :] * [1, 1, 1, -1, -1, -1, -1] - exact)
    )
    assert gap.max() < 1e-7 * np.abs(exact).max()


def test_a_base_that_is_no_rotation_is_refused_with_its_slot(space: ActionSpace) -> None:
    """Before anything moves, naming the slot and the norm."""
    x, state = problem(2, 0)
    state[1, 3:7] *= 1.01
    with pytest.raises(InputError, match=r"slot 'right_eef_rotation'.*norm 1.*found norm 1\.01"):
        space.decode(x, state)


@pytest.mark.parametrize(
    "x", [None, np.zeros((1, H, 200), np.float32), torch.zeros(1, H, 200, dtype=torch.int64)]
)
def test_chunks_are_tensors_of_floats(space: ActionSpace, x: Any) -> None:
    """Anything else is one sentence."""
    with pytest.raises(InputError, match=r"chunks are .*expected a floating-point tensor"):
        space.decode(x, problem(1, 0)[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_converted(space: ActionSpace, dtype: torch.dtype) -> None:
    """What a model computes in does not matter."""
    x, state = problem(1, 0)
    rounded = x.to(dtype)
    np.testing.assert_array_equal(
        space.decode(rounded, state), space.decode(rounded.float(), state)
    )


@pytest.mark.ci
def test_one_chunk_takes_at_most_60_microseconds(space: ActionSpace) -> None:
    """All that a policy does with it: checks, base pose, denormalising, frames, gathering."""
    x, state = problem(1, 0)
    timings = interleave({"decode": lambda: space.decode(x, state)}, 2000)
    assert timings["decode"].best <= 60e-6
