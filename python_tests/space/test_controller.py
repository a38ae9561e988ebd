"""A command becomes the numbers of the robot's own controller and comes back, as scipy computes."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation as Peer

from vlakern.errors import ConfigError, InputError
from vlakern.space import Controller, Embodiment, Pose, Rotation, embodiment, slot_map
from vlakern.space.controller import NativeControl

SLOTS = slot_map("unified-200")
PANDA, SAWYER, FRANKA = (
    embodiment(name) for name in ("robosuite_panda", "metaworld_sawyer", "franka_panda")
)
T = 12
BASE_P, BASE_V = np.array([0.4, -0.3, 0.9]), np.array([0.3, -0.7, 2.0])
BASE_R = Peer.from_rotvec(BASE_V)


def control(robot: Embodiment = PANDA, turned: bool = False, **changes: Any) -> NativeControl:
    """A robot whose controller is changed, on a base that stands straight or turned."""
    assert robot.controller
    mine = dataclasses.replace(robot, controller=dataclasses.replace(robot.controller, **changes))
    rotation = Rotation.read(torch.from_numpy(BASE_R.as_rotvec()), "axis_angle")
    base = Pose(torch.from_numpy(BASE_P), rotation) if turned else None
    return NativeControl(mine, SLOTS, base)


def states(seed: int = 0) -> np.ndarray:
    """Poses of a Panda's hand in its base frame, and its finger."""
    rng = np.random.default_rng(seed)
    out = rng.normal(size=(T, 8))
    out[:, 3:7] = Peer.from_quat(rng.normal(size=(T, 4))).as_quat()
    return out


def numbers(seed: int = 1) -> np.ndarray:
    """Controller numbers within their limits."""
    return np.random.default_rng(seed).uniform(-0.9, 0.9, size=(T, 7)).astype(np.float32)


@pytest.mark.parametrize("frame", ["world_delta", "eef_delta", "world_relative", "eef_relative"])
@pytest.mark.parametrize("reference", ["achieved", "commanded"])
@pytest.mark.parametrize("coordinates", ["base", "world"])
def test_commands_are_what_scipy_computes_and_come_back(
    frame: str, reference: str, coordinates: str
) -> None:
    """World numbers lie along the world's axes, hand numbers along the hand's, on any base."""
    robot = control(turned=True, frame=frame, reference=reference, coordinates=coordinates)
    state, native = states(), numbers()
    found = robot.to_commands(native, state)
    turn_in = BASE_R if coordinates == "world" else Peer.identity()
    before = state[0, :3], Peer.from_quat(state[0, 3:7])
    for t in range(T):
        if reference == "achieved":
            before = state[t, :3], Peer.from_quat(state[t, 3:7])
        step, turn = 0.05 * native[t, :3].astype(float), Peer.from_rotvec(0.5 * native[t, 3:6])
        if frame.startswith("eef"):
            before = before[0] + before[1].apply(step), before[1] * turn
        else:
            moved = before[0] + turn_in.inv().apply(step)
            before = moved, turn_in.inv() * turn * turn_in * before[1]
        np.testing.assert_allclose(found[t, :3], before[0], atol=1e-9)
        gap = (Peer.from_rotvec(found[t, 3:6]).inv() * before[1]).magnitude()
        assert gap < 1e-7
    assert np.array_equal(found[:, 6], native[:, 6])
    last = None
    for t in range(T):
        back = robot.to_native(found[t], state[t], last)
        assert back.dtype == np.float32
        np.testing.assert_allclose(back, native[t], atol=1e-5)
        np.testing.assert_allclose(robot.to_command(back, state[t], last), found[t], atol=1e-5)
        last = found[t]


def test_one_number_is_five_centimetres_or_half_a_radian() -> None:
    """By hand: 1 along x of the base, and 1 about its z, from a hand turned about z already."""
    state = np.r_[0.1, 0.2, 0.3, Peer.from_rotvec([0, 0, 0.4]).as_quat(), 0.0]
    native = np.array([1.0, 0, 0, 0, 0, 1.0, -1.0])
    found = control().to_command(native, state)
    np.testing.assert_allclose(found, [0.15, 0.2, 0.3, 0, 0, 0.9, -1.0], atol=1e-12)
    # A base that is turned by 90° about z: the world's x is its -y.
    quarter = Rotation.read(torch.tensor([0, 0, math.pi / 2], dtype=torch.float64), "axis_angle")
    base = Pose(torch.zeros(3, dtype=torch.float64), quarter)
    assert PANDA.controller
    world = dataclasses.replace(PANDA.controller, coordinates="world")
    robot = NativeControl(dataclasses.replace(PANDA, controller=world), SLOTS, base)
    np.testing.assert_allclose(robot.to_command(native, state)[:3], [0.1, 0.15, 0.3], atol=1e-12)


def test_a_wrong_frame_is_another_command() -> None:
    """Base for world axes, left for right multiplication, achieved for commanded: none agree."""
    state, native = states(), numbers()
    right = control(turned=True, coordinates="world").to_commands(native, state)
    for wrong in (
        control(turned=True, coordinates="base"),
        control(turned=True, coordinates="world", frame="eef_delta"),
        control(turned=True, coordinates="world", reference="commanded"),
    ):
        assert np.abs(wrong.to_commands(native, state) - right)[1:].max() > 0.05


def test_an_absolute_controller_takes_the_pose_itself() -> None:
    """In its own units; no state matters."""
    robot = NativeControl(FRANKA, SLOTS)
    state = np.zeros((T, 15))
    state[:, 6] = 1.0
    command = np.random.default_rng(2).normal(size=(T, 8))
    command[:, 3:7] = Peer.from_quat(command[:, 3:7]).as_quat()
    command[:, 3:7] *= np.sign(command[:, 6:7])
    native = robot.to_native(command, state)
    np.testing.assert_allclose(native, command, atol=1e-6)
    np.testing.assert_allclose(robot.to_commands(native, state), command, atol=1e-6)
    scaled = control(FRANKA, position_scale=0.001).to_native(command, state)
    np.testing.assert_allclose(scaled[:, :3], 1000 * command[:, :3], rtol=1e-5)


def test_a_step_beyond_the_limit_is_refused_by_slot_and_size() -> None:
    """Of each component, as the controller clips each; the limit itself passes."""
    state = states()[0]
    here = control().to_command(np.zeros(7), state)
    ahead = here + np.r_[0.05, np.zeros(6)]
    np.testing.assert_allclose(control().to_native(ahead, state)[0], 1.0, atol=1e-6)
    ahead[0] += 0.001
    with pytest.raises(
        InputError,
        match=r"'right_eef_position': the step asks for 0\.051 m, OSC_POSE of robosuite_panda takes"
        r" at most 0\.05 m; command smaller steps, or clip",
    ):
        control().to_native(ahead, state)
    turned = here.copy()
    turned[3:6] = (Peer.from_rotvec([0, 0.6, 0]) * Peer.from_rotvec(here[3:6])).as_rotvec()
    with pytest.raises(InputError, match=r"'right_eef_rotation': the step asks for 0\.6 rad"):
        control().to_native(turned, state)
    assert control(limit=None).to_native(turned, state)[4] == pytest.approx(1.2, rel=1e-6)


def test_clipping_is_asked_for_and_per_number() -> None:
    """As robosuite and Meta-World clip; the gripper is no pose and stays."""
    state = states()[0]
    ahead = control().to_command(np.zeros(7), state) + np.r_[0.2, -0.02, 0, 0, 0, 0, 3.0]
    native = control().to_native(ahead, state, limit="clip")
    np.testing.assert_allclose(native, [1.0, -0.4, 0, 0, 0, 0, 3.0], atol=1e-6)
    reached = control().to_command(native, state)
    np.testing.assert_allclose(reached[:3] - state[:3], [0.05, -0.02, 0], atol=1e-6)


def arm(x: float, y: float, z: float, grip: float = 0.0) -> np.ndarray:
    return np.array([x, y, z, grip])


def test_chunks_add_up_from_where_each_begins() -> None:
    """Batched; with one state a chunk, since only the first is read."""
    robot = NativeControl(SAWYER, SLOTS)
    rng = np.random.default_rng(3)
    native, start = rng.uniform(-1, 1, (2, 5, 4)), rng.uniform(0, 1, (2, 1, 4))
    found = robot.to_commands(native, start)
    expected = start[..., :3] + np.cumsum(0.01 * native[..., :3], axis=1)
    np.testing.assert_allclose(found[..., :3], expected)
    assert np.array_equal(found[..., 3], native[..., 3])
    many = np.concatenate([start, rng.normal(size=(2, 4, 4))], axis=1)
    assert np.array_equal(robot.to_commands(native, many), found)


def test_a_hand_that_never_turns_is_commanded_by_position() -> None:
    """From what was commanded: the measured hand matters only at the start."""
    robot = NativeControl(SAWYER, SLOTS)
    first = robot.to_native(arm(0.005, 0.6, 0.1, 0.3), arm(0.0, 0.6, 0.1))
    np.testing.assert_allclose(first, [0.5, 0, 0, 0.3], atol=1e-6)
    last, lagging = arm(0.005, 0.6, 0.1), arm(-0.2, 0.5, 0.3)
    second = robot.to_native(arm(0.0, 0.6, 0.1), lagging, last)
    np.testing.assert_allclose(second, [-0.5, 0, 0, 0], atol=1e-6)


def without(robot: Embodiment, part: str, slot: str) -> Embodiment:
    kept = tuple(f for f in getattr(robot, part) if f.slot != slot)
    return dataclasses.replace(robot, **{part: kept})


@pytest.mark.parametrize(
    ("robot", "sentence"),
    [
        (embodiment("so100"), "so100 declares no controller; it takes commands as they are"),
        (
            dataclasses.replace(embodiment("so100"), controller=Controller("c", "absolute")),
            "controller c needs a slot of kind position in the action, such as",
        ),
        (
            without(PANDA, "state", "right_eef_position"),
            "needs slot 'right_eef_position' in the st",
        ),
        (
            without(PANDA, "state", "right_eef_rotation"),
            "needs slot 'right_eef_rotation' in the st",
        ),
        (
            dataclasses.replace(PANDA, controller=FRANKA.controller),
            "slot 'right_eef_rotation' is commanded as axis_angle, controller Cartesian pose takes"
            " quaternion_xyzw; declare one of them",
        ),
        (
            dataclasses.replace(SAWYER, controller=Controller("c", "eef_delta")),
            "in frame eef_delta needs slot 'right_eef_rotation' in the action",
        ),
    ],
)
def test_a_robot_that_cannot_be_controlled_so_is_refused(robot: Embodiment, sentence: str) -> None:
    """When it is built, by the slot that it lacks."""
    with pytest.raises(ConfigError, match=sentence):
        NativeControl(robot, SLOTS)


@pytest.mark.parametrize("frame", ["world_delta", "absolute"])
def test_states_in_the_world_and_a_controller_in_base_axes(frame: str) -> None:
    """As scipy computes: the numbers are those of the same poses, seen from the base."""
    assert PANDA.controller
    moving = dataclasses.replace(PANDA.controller, frame=frame, limit=None)
    base = Pose(torch.from_numpy(BASE_P), Rotation.read(torch.from_numpy(BASE_V), "axis_angle"))
    robot = dataclasses.replace(PANDA, controller=moving, poses="world")
    found = NativeControl(robot, SLOTS, base)
    plain = NativeControl(dataclasses.replace(robot, poses="base"), SLOTS)
    state, command = states(), numbers()
    seen_state, seen = state.copy(), command.astype(float)
    for values, peer in ((seen_state, Peer.from_quat(state[:, 3:7])), (seen, None)):
        turns = BASE_R.inv() * (peer or Peer.from_rotvec(command[:, 3:6]))
        values[:, :3] = BASE_R.inv().apply(values[:, :3] - BASE_P)
        if peer:
            values[:, 3:7] = turns.as_quat()
        else:
            values[:, 3:6] = turns.as_rotvec()
    native = found.to_native(command, state)
    np.testing.assert_allclose(native, plain.to_native(seen, seen_state), atol=2e-5)
    back = found.to_commands(native, state)
    np.testing.assert_allclose(back[:, :3], command[:, :3], atol=2e-6)
    gap = (Peer.from_rotvec(back[:, 3:6]).inv() * Peer.from_rotvec(command[:, 3:6])).magnitude()
    assert gap.max() < 2e-6


def test_a_base_is_asked_for_where_axes_differ_and_only_there() -> None:
    """LIBERO's and Meta-World's states are in the world, as their controllers' axes."""
    for name in ("libero_panda", "metaworld_sawyer", "robosuite_panda"):
        NativeControl(embodiment(name), SLOTS)
    assert PANDA.controller
    in_world = dataclasses.replace(PANDA.controller, coordinates="world")
    for robot in (
        dataclasses.replace(PANDA, controller=in_world),
        dataclasses.replace(PANDA, poses="world"),
    ):
        with pytest.raises(
            ConfigError,
            match=r"robosuite_panda: its poses are in the (base|world) frame, controller OSC_POSE"
            r" has (base|world) axes, and no base is given; give NativeControl the base's pose",
        ):
            NativeControl(robot, SLOTS)
        two = Pose(torch.zeros(2, 3).double(), Rotation.identity((2,), torch.float64))
        for base in (two, Pose(torch.zeros(3), Rotation.identity())):
            with pytest.raises(InputError, match=r"base is \[.* expected one pose \[\] of torch"):
                NativeControl(robot, SLOTS, base)
    # Numbers along the hand's own axes are the same on any base.
    own = dataclasses.replace(PANDA.controller, frame="eef_delta")
    robot, state = dataclasses.replace(PANDA, controller=own), states()
    turned = NativeControl(dataclasses.replace(robot, poses="world"), SLOTS)
    expected = NativeControl(robot, SLOTS).to_commands(numbers(), state)
    assert np.array_equal(turned.to_commands(numbers(), state), expected)


def steps_of_libero() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Native numbers, achieved states and the goals' turns about z [rad], by hand.

    The hand lags: it never reaches its goal, and drifts. Each turn of 1 is 0.5 rad from the
    achieved one; a turn of 0 keeps the goal.
    """
    native, state = np.zeros((5, 7)), np.zeros((5, 8))
    native[:, 0] = 1.0
    native[:, 5] = [0.0, 1.0, 0.0, 0.0, -0.2]
    state[:, 0] = [0.0, 0.03, 0.07, 0.12, 0.17]
    state[:, 5] = [0.3, 0.31, 0.6, 0.7, 0.75]
    return native, state, np.array([0.3, 0.81, 0.81, 0.81, 0.65])


def test_a_rotation_of_zero_keeps_what_was_commanded() -> None:
    """robosuite 1.4, by hand: position goals start from the achieved pose, so do turns; but a turn
    of exactly 0 leaves the goal where it was. Without the flag it would follow the drift."""
    libero = embodiment("libero_panda")
    control = NativeControl(libero, SLOTS)
    native, state, turns = steps_of_libero()
    found = control.to_commands(native, state)
    np.testing.assert_allclose(found[:, 5], turns, atol=1e-12)
    np.testing.assert_allclose(found[:, 0], state[:, 0] + 0.05, atol=1e-12)
    assert libero.controller
    forgets = dataclasses.replace(libero.controller, keeps_rotation=False)
    other = NativeControl(dataclasses.replace(libero, controller=forgets), SLOTS)
    drifting = other.to_commands(native, state)[:, 5]
    np.testing.assert_allclose(drifting, [0.3, 0.81, 0.6, 0.7, 0.65], atol=1e-12)
    last = None
    for t in range(len(native)):
        np.testing.assert_allclose(control.to_command(native[t], state[t], last), found[t])
        last = found[t]
    both = np.stack([native, native[::-1]]), np.stack([state, state])
    np.testing.assert_allclose(control.to_commands(*both)[0], found)
    np.testing.assert_allclose(control.to_commands(*both)[1, 1:, 5], [0.2, 0.2, 1.2, 1.2])


def test_native_numbers_know_that_zero_keeps() -> None:
    """The goal of before is 0 though the hand is elsewhere; staying where the hand is is not."""
    control = NativeControl(embodiment("libero_panda"), SLOTS)
    native, state, _ = steps_of_libero()
    commands = control.to_commands(native, state)
    for t in range(1, 5):
        back = control.to_native(commands[t], state[t], commands[t - 1])
        np.testing.assert_allclose(back, native[t], atol=1e-6)
        assert np.array_equal(back[3:6] == 0, native[t, 3:6] == 0)
    far = state[2].copy()
    far[5] = -2.0
    assert not control.to_native(commands[2], far, commands[1])[3:6].any(), "within the limit"
    stay = np.r_[state[2, :6], 0.0]
    for last in (commands[1], None):
        found = control.to_native(stay, state[2], last)
        np.testing.assert_allclose(found[3:6], [1e-6, 0, 0])
        goal = control.to_command(found, state[2], last)
        np.testing.assert_allclose(goal, stay, atol=1e-6)
    many = control.to_native(np.stack([commands[2], stay]), state[[2, 2]], commands[[1, 1]])
    np.testing.assert_allclose(many[:, 3:6], [[0, 0, 0], [1e-6, 0, 0]])
    with pytest.raises(InputError, match=r"last action number 5 \(slot 'right_eef_rotation'\)"):
        control.to_command(native[0], state[0], np.r_[np.zeros(5), math.nan, 0.0])
    for method in (control.to_command, control.to_native):
        with pytest.raises(
            InputError, match=r"last action is \[7\] beside actions \[5, 7\], expected"
        ):
            method(native, state, commands[0])
    with pytest.raises(InputError, match=r"expected \[\.\.\., T, N\] beside .*one state per step"):
        control.to_commands(native, state[0])


@pytest.mark.parametrize("limit", ["clamp", "", None, ["clip"]])
def test_another_limit_is_refused(limit: Any) -> None:
    """Also where the step is within it, or the controller has none."""
    for robot in (control(), control(limit=None)):
        with pytest.raises(InputError, match=r"limit is .*, expected one of refuse, clip; refuse"):
            robot.to_native(np.zeros(7), states()[0], limit=limit)


def test_numbers_that_are_no_command_are_refused() -> None:
    """By the slot; for commands, states and what was commanded last."""
    state, command = states()[0], np.zeros(7)
    broken = np.r_[np.zeros(6), math.nan]
    with pytest.raises(InputError, match=r"action number 6 \(slot 'right_gripper'\) is not finite"):
        control().to_native(broken, state)
    with pytest.raises(InputError, match=r"last action number 6 \(slot 'right_gripper'\)"):
        control(reference="commanded").to_native(command, state, broken)
    with pytest.raises(
        InputError, match=r"state is float64\[7\], robosuite_panda has \[\.\.\., 8\]"
    ):
        control().to_native(command, state[:7])
    with pytest.raises(InputError, match=r"slot 'right_eef_rotation': a unit quaternion"):
        control().to_native(command, np.r_[np.zeros(3), 2.0, np.zeros(4)])
    with pytest.raises(InputError, match=r"action is float64\[6\], robosuite_panda has"):
        control().to_commands(command[:6], state)
