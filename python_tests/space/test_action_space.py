"""Commands become slots in every frame and come back, as an independent computation says."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation as Peer

from vlakern.space import (
    FRAMES,
    ActionSpace,
    Embodiment,
    Field,
    Normalizer,
    SlotMap,
    VectorStats,
    robot_and_slots,
)
from vlakern.space.action_space import ActionFrame

PAIR_MAP = """
name = "pair"
width = 30
slots = [
  { name = "left_eef_position", unit = "m", start = 0, stop = 3, kind = "position" },
  { name = "left_eef_rotation", unit = "1", start = 3, stop = 9, kind = "rotation_6d" },
  { name = "right_eef_position", unit = "m", start = 9, stop = 12, kind = "position" },
  { name = "right_eef_rotation", unit = "1", start = 12, stop = 18, kind = "rotation_6d" },
  { name = "left_gripper", unit = "1", start = 18, stop = 19, kind = "gripper" },
  { name = "right_gripper", unit = "1", start = 19, stop = 20, kind = "gripper" },
  { name = "left_arm_joints", unit = "rad", start = 20, stop = 27, kind = "joint" },
  { name = "right_arm_joints", unit = "rad", start = 27, stop = 30, kind = "joint" },
]
"""
PAIR = """
name = "pair"
slot_map = "map.toml"
control_rate = 50
views = ["front"]
state_width = 24  # numbers 22 and 23 are nobody's
action_width = 19
state = [
  { slot = "left_eef_position", native = [0, 3] },
  { slot = "left_eef_rotation", native = [3, 7], rotation = "quaternion_wxyz" },
  { slot = "right_eef_rotation", native = [7, 11], rotation = "quaternion_wxyz" },
  { slot = "right_eef_position", native = [11, 14] },
  { slot = "left_gripper", native = [14, 15], closed = 0.0, open = 0.08 },
  { slot = "right_gripper", native = [15, 16], closed = 0.0, open = 0.08 },
  { slot = "left_arm_joints", native = [16, 22] },
]
action = [
  { slot = "right_arm_joints", native = [0, 3] },
  { slot = "right_eef_position", native = [3, 6] },
  { slot = "right_eef_rotation", native = [6, 10], rotation = "quaternion_wxyz" },
  { slot = "left_eef_rotation", native = [10, 14], rotation = "quaternion_xyzw" },
  { slot = "left_eef_position", native = [14, 17] },
  { slot = "left_gripper", native = [17, 18], closed = 100.0, open = 0.0 },
  { slot = "right_gripper", native = [18, 19] },
]
"""
NAMES = ("pair", "robosuite_panda", "robocasa_panda_omron", "libero_panda", "franka_panda")
B, H = 3, 5


@pytest.fixture(scope="module")
def robots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Embodiment, SlotMap]]:
    """Robots with one arm that ship, one without rotation, and one with two arms from a file."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "map.toml").write_text(PAIR_MAP)
    (folder / "pair.toml").write_text(PAIR)
    shipped = {name: robot_and_slots(name) for name in (*NAMES[1:], "metaworld_sawyer", "so100")}
    return {"pair": robot_and_slots(folder / "pair.toml"), **shipped}


def some_stats(slots: SlotMap) -> VectorStats:
    """A different mean and deviation for every index."""
    mean = np.linspace(-0.2, 0.3, slots.width)
    std = np.linspace(0.5, 1.5, slots.width)
    rows = (mean, std, mean - 2, mean + 2, mean - 1.5, mean + 1.5)
    return VectorStats(*(tuple(row.tolist()) for row in rows), names=slots.names())


def make(
    made_of: tuple[Embodiment, SlotMap],
    frame: ActionFrame,
    modes: Any = "zscore",
    stats: VectorStats | None = None,
) -> ActionSpace:
    robot, slots = made_of
    stats = stats or some_stats(slots)
    state, action = Normalizer("state", "zscore", stats), Normalizer("action", modes, stats)
    return ActionSpace(robot, slots, slots, frame, state, action)


def draw(robot: Embodiment, part: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Native numbers whose rotations are rotations, by scipy."""
    rng = np.random.default_rng(seed)
    fields, width = getattr(robot, part), getattr(robot, f"{part}_width")
    out = rng.normal(size=(*shape, width))
    for field in fields:
        if field.rotation:
            turn = Peer.from_quat(rng.normal(size=(math.prod(shape), 4)))
            out[..., slice(*field.native)] = written(turn, field.rotation).reshape(*shape, -1)
    return out


def written(turn: Peer, kind: str) -> np.ndarray:
    """Rotations as numbers, by scipy."""
    quaternion, matrix = turn.as_quat(), turn.as_matrix()
    return {
        "axis_angle": turn.as_rotvec(),
        "quaternion_xyzw": quaternion,
        "quaternion_wxyz": np.roll(quaternion, 1, axis=-1),
        "rotation_6d": np.concatenate([matrix[..., 0], matrix[..., 1]], axis=-1),
    }[kind]


def matrices(values: np.ndarray, kind: str) -> np.ndarray:
    """Numbers as rotation matrices, by scipy and, for 6-D, by Gram and Schmidt."""
    flat = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
    if kind == "rotation_6d":
        x = flat[:, :3] / np.linalg.norm(flat[:, :3], axis=1, keepdims=True)
        y = flat[:, 3:] - (x * flat[:, 3:]).sum(1, keepdims=True) * x
        y /= np.linalg.norm(y, axis=1, keepdims=True)
        found = np.stack([x, y, np.cross(x, y)], axis=-1)
    elif kind == "axis_angle":
        found = Peer.from_rotvec(flat).as_matrix()
    else:
        ordered = flat if kind == "quaternion_xyzw" else np.roll(flat, -1, axis=1)
        found = Peer.from_quat(ordered).as_matrix()
    return found.reshape(*values.shape[:-1], 3, 3)


Place = tuple[np.ndarray, np.ndarray]


def action_of(frame: str, start: Place, before: Place, target: Place) -> Place:
    """The table of the four frames, in matrices."""
    p, turn = before if frame.endswith("delta") else start
    if frame.startswith("eef"):
        return turn.T @ (target[0] - p), turn.T @ target[1]
    return target[0] - p, target[1] @ turn.T


def target_of(frame: str, start: Place, before: Place, action: Place) -> Place:
    """And back."""
    p, turn = before if frame.endswith("delta") else start
    if frame.startswith("eef"):
        return p + turn @ action[0], turn @ action[1]
    return p + action[0], action[1] @ turn


def arms(robot: Embodiment) -> list[str]:
    return [
        f.slot.removesuffix("_position") for f in robot.action if f.slot.endswith("eef_position")
    ]


def place(values: np.ndarray, fields: tuple[Field, ...], arm: str) -> Place:
    by = {field.slot: field for field in fields}
    position, rotation = by[f"{arm}_position"], by[f"{arm}_rotation"]
    assert rotation.rotation
    turn = matrices(values[..., slice(*rotation.native)], rotation.rotation)
    return values[..., slice(*position.native)], turn


def same_numbers(found: np.ndarray, expected: np.ndarray, fields: Any, atol: float) -> None:
    """Equal numbers, or, for rotations, equal matrices."""
    for field in fields:
        one, two = found[..., slice(*field.native)], expected[..., slice(*field.native)]
        if field.rotation:
            one, two = matrices(one, field.rotation), matrices(two, field.rotation)
        np.testing.assert_allclose(one, two, rtol=0, atol=atol, err_msg=field.slot)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", NAMES)
def test_a_command_survives_there_and_back(robots: Any, name: str, frame: ActionFrame) -> None:
    """Whatever arms, representations, gripper conventions and order of numbers."""
    space = make(robots[name], frame)
    commands, state = draw(space.robot, "action", (B, H), 1), draw(space.robot, "state", (B,), 2)
    x = space.encode(commands, state)
    assert x.dtype == np.float32
    found = space.decode(torch.from_numpy(x), state)
    assert (found.dtype, found.shape) == (np.float32, commands.shape)
    same_numbers(found, commands, space.robot.action, 2e-5)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", ["pair", "franka_panda"])
def test_slots_hold_what_scipy_computes(robots: Any, name: str, frame: ActionFrame) -> None:
    """Position and rotation of every arm and step, in the representation of the slot."""
    space, slots = make(robots[name], frame), robots[name][1]
    commands, state = draw(space.robot, "action", (B, H), 3), draw(space.robot, "state", (B,), 4)
    unified = space.unify(commands, state)
    for arm in arms(space.robot):
        starts = place(state, space.robot.state, arm)
        targets = place(commands, space.robot.action, arm)
        turn = slots.slot(f"{arm}_rotation")
        at = slots.slot(f"{arm}_position").start
        for b in range(B):
            start = before = (starts[0][b], starts[1][b])
            for h in range(H):
                target = (targets[0][b, h], targets[1][b, h])
                p, rotation = action_of(frame, start, before, target)
                before = target
                found = unified[b, h]
                np.testing.assert_allclose(found[at : at + 3], p, atol=1e-12)
                got = matrices(found[turn.start : turn.stop], turn.kind)
                np.testing.assert_allclose(got, rotation, atol=1e-9)


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("name", ["pair", "robosuite_panda"])
def test_a_models_numbers_become_what_scipy_computes(
    robots: Any, name: str, frame: ActionFrame
) -> None:
    """Denormalised, projected, turned to the base frame and written as the robot wants them."""
    (robot, slots), stats = robots[name], some_stats(robots[name][1])
    space = make(robots[name], frame)
    rng = np.random.default_rng(5)
    x, state = rng.normal(size=(B, H, slots.width)), draw(robot, "state", (B,), 6)
    found = space.decode(torch.from_numpy(x).float(), state)
    values = x * np.array(stats.std) + np.array(stats.mean)
    expected = np.full(found.shape, np.nan)
    for field in robot.action:
        slot = slots.slot(field.slot)
        if not field.rotation and slot.kind != "position":
            plain = values[..., slot.start : slot.start + field.width]
            if field.closed is not None and field.open is not None:
                plain = field.closed + plain * (field.open - field.closed)
            expected[..., slice(*field.native)] = plain
    by = {field.slot: field for field in robot.action}
    for arm in arms(robot):
        starts = place(state, robot.state, arm)
        at, turn = slots.slot(f"{arm}_position"), slots.slot(f"{arm}_rotation")
        turns = matrices(values[..., turn.start : turn.stop], turn.kind)
        field = by[f"{arm}_rotation"]
        assert field.rotation
        for b in range(B):
            start = before = (starts[0][b], starts[1][b])
            for h in range(H):
                action = (values[b, h, at.start : at.stop], turns[b, h])
                before = target_of(frame, start, before, action)
                expected[b, h, slice(*by[f"{arm}_position"].native)] = before[0]
                written_as = written(Peer.from_matrix(before[1]), field.rotation)
                expected[b, h, slice(*field.native)] = written_as
    same_numbers(found, expected, robot.action, 2e-5)


def test_an_example_computed_by_hand(robots: Any) -> None:
    """From (1, 0, 0) turned 90° about z to (1, 1, 0), turned 90° about the world's x besides."""
    robot, slots = robots["robosuite_panda"]
    half = math.sqrt(0.5)
    state = np.array([1.0, 0.0, 0.0, 0.0, 0.0, half, half, robot.state[2].open])
    turned = Peer.from_rotvec([math.pi / 2, 0, 0]) * Peer.from_rotvec([0, 0, math.pi / 2])
    command = np.r_[1.0, 1.0, 0.0, turned.as_rotvec(), 1.0][None]
    for frame in FRAMES:
        # Along the hand's own axes, the world's y is x and its x is -y.
        own = frame.startswith("eef")
        position = [1, 0, 0] if own else [0, 1, 0]
        rotation = [0, -math.pi / 2, 0] if own else [math.pi / 2, 0, 0]
        found = make((robot, slots), frame).unify(command, state)[0]
        np.testing.assert_allclose(found[:6], [*position, *rotation], atol=1e-12)
        assert found[18] == 0.0
        assert not found[[*range(6, 18), *range(19, 200)]].any()
    found = make((robot, slots), "world_relative").unify_state(state)
    np.testing.assert_allclose(found[:6], [1, 0, 0, 0, 0, math.pi / 2], atol=1e-12)
    assert found[18] == 1.0


@pytest.mark.parametrize("frame", ["world_relative", "world_delta"])
def test_a_hand_that_never_turns_has_the_world_frames(robots: Any, frame: ActionFrame) -> None:
    """Differences of positions, along the same axes."""
    space = make(robots["metaworld_sawyer"], frame)
    rng = np.random.default_rng(7)
    commands, state = rng.uniform(-1, 1, (B, H, 4)), rng.uniform(0, 1, (B, 4))
    unified = space.unify(commands, state)
    before = np.concatenate([state[:, None, :3], commands[:, :-1, :3]], axis=1)
    start = state[:, None, :3] if frame == "world_relative" else before
    np.testing.assert_allclose(unified[..., :3], commands[..., :3] - start)
    np.testing.assert_allclose(unified[..., 18], (1 - commands[..., 3]) / 2)
    assert space.action_mask.sum() == 4
    found = space.decode(torch.from_numpy(space.encode(commands, state)), state)
    np.testing.assert_allclose(found, commands, atol=2e-6)


@pytest.mark.parametrize("name", ["robosuite_panda", "metaworld_sawyer", "so100", "libero_panda"])
def test_native_passes_numbers_untouched(robots: Any, name: str) -> None:
    """Bit by bit through ``unify``, and through decode where nothing is normalised."""
    space = make(robots[name], "native", "none")
    robot, slots = robots[name]
    native = np.random.default_rng(8).normal(size=(B, H, robot.action_width)).astype(np.float32)
    state = draw(robot, "state", (B,), 9)
    unified = space.unify(native, state)
    for field in robot.action:
        start = slots.slot(field.slot).start
        given = native[..., slice(*field.native)]
        assert np.array_equal(unified[..., start : start + field.width], given)
    assert not unified[..., ~space.action_mask].any()
    found = space.decode(torch.from_numpy(unified).float(), state)
    assert np.array_equal(found, native)
    zscore = make(robots[name], "native")
    found = zscore.decode(torch.from_numpy(zscore.encode(native, state)), state)
    np.testing.assert_allclose(found, native, atol=1e-6)


def test_masks_are_the_slots_that_the_robot_fills(robots: Any) -> None:
    """Of a slot filled in part only that part; nothing else has a number, ever."""
    space, (robot, slots) = make(robots["pair"], "eef_delta"), robots["pair"]
    names = slots.names()
    assert [n for n, there in zip(names, space.state_mask, strict=True) if not there] == [
        "left_arm_joints.6",
        *(f"right_arm_joints.{i}" for i in range(3)),
    ]
    assert [n for n, there in zip(names, space.action_mask, strict=True) if not there] == [
        f"left_arm_joints.{i}" for i in range(7)
    ]
    state = draw(robot, "state", (B,), 10)
    x = space.encode(draw(robot, "action", (B, H), 11), state)
    # The statistics have a mean for every index, as those of many robots together would.
    assert not x[..., ~space.action_mask].any()
    assert not space.encode_state(state)[..., ~space.state_mask].any()
    assert x[..., space.action_mask].any(axis=(0, 1)).all()


def test_rows_do_not_see_each_other(robots: Any) -> None:
    """A row of a batch is the row alone, in both directions."""
    space, robot = make(robots["pair"], "eef_delta"), robots["pair"][0]
    commands, state = draw(robot, "action", (B, H), 12), draw(robot, "state", (B,), 13)
    x = space.encode(commands, state)
    for b in range(B):
        assert np.array_equal(space.encode(commands[b], state[b]), x[b])
        alone = space.decode(torch.from_numpy(x[b : b + 1]), state[b : b + 1])
        assert np.array_equal(alone[0], space.decode(torch.from_numpy(x), state)[b])


@pytest.mark.parametrize("frame", FRAMES)
def test_past_the_end_a_pose_is_the_identity_and_the_rest_holds(
    robots: Any, frame: ActionFrame
) -> None:
    """Position and rotation vanish; gripper and joints keep what the caller repeated."""
    space, robot = make(robots["pair"], frame), robots["pair"][0]
    commands, state = draw(robot, "action", (1, H), 14), draw(robot, "state", (1,), 15)
    commands[:, 3:] = commands[:, 2:3]
    valid = np.array([[True, True, True, False, False]])
    unified = space.unify(commands, state, valid)
    inside = space.unify(commands, state)
    assert np.array_equal(unified[:, :3], inside[:, :3])
    identity = np.r_[np.zeros(3), 1, 0, 0, 0, 1, 0]
    np.testing.assert_allclose(unified[0, 3:, :18], np.tile(identity, (2, 2)), atol=1e-15)
    assert np.array_equal(unified[0, 3:, 18:], np.repeat(unified[0, 2:3, 18:], 2, axis=0))


def test_a_binary_gripper_is_one_of_two_values(robots: Any) -> None:
    """-1 and +1 for the model; its native numbers for the robot, whatever the model says."""
    robot, slots = robots["robosuite_panda"]
    rows = some_stats(slots)
    low, high = list(rows.min), list(rows.max)
    low[18], high[18] = 0.0, 1.0
    stats = dataclasses.replace(rows, min=tuple(low), max=tuple(high))
    modes = ["binary" if i == 18 else "zscore" for i in range(200)]
    space = make((robot, slots), "eef_relative", modes, stats)
    commands, state = draw(robot, "action", (1, 4), 16), draw(robot, "state", (1,), 17)
    commands[0, :, 6] = [1.0, -1.0, -1.0, 1.0]
    x = space.encode(commands, state)
    assert x[0, :, 18].tolist() == [-1.0, 1.0, 1.0, -1.0]
    x[0, :, 18] = [-0.1, 7.0, 1e-6, -3.0]
    assert space.decode(torch.from_numpy(x), state)[0, :, 6].tolist() == [1.0, -1.0, -1.0, 1.0]


def test_the_order_of_a_quaternion_is_the_fields(robots: Any) -> None:
    """The same turn in x, y, z, w and in w, x, y, z is the same slot; swapped it is another."""
    robot, slots = robots["franka_panda"]
    space = make((robot, slots), "eef_relative")
    state = draw(robot, "state", (1,), 18)
    turn = Peer.from_quat(state[0, 3:7])
    np.testing.assert_allclose(space.unify_state(state)[0, 3:6], turn.as_rotvec(), atol=1e-12)
    fields = tuple(
        dataclasses.replace(f, rotation="quaternion_wxyz") if f.rotation else f for f in robot.state
    )
    other = make((dataclasses.replace(robot, state=fields), slots), "eef_relative")
    assert np.abs(other.unify_state(state)[0, 3:6] - turn.as_rotvec()).max() > 0.1
    state[0, 3:7] = np.roll(state[0, 3:7], 1)
    np.testing.assert_allclose(other.unify_state(state)[0, 3:6], turn.as_rotvec(), atol=1e-12)
