"""The robots that ship say what their makers say; a record that contradicts itself is refused."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlakern.errors import ConfigError, InputError
from vlakern.space import (
    ActionSpace,
    Controller,
    Embodiment,
    Field,
    Joint,
    Normalizer,
    VectorStats,
    compact,
    embodiment,
    robot_and_slots,
    shipped_embodiments,
    slot_map,
)
from vlakern.space.action_space import ActionFrame
from vlakern.space.embodiment import check_embodiment, check_vector, present

OSC_ROBOTS = [f"robosuite_{arm}" for arm in ("iiwa", "kinova3", "panda", "sawyer", "ur5e", "xarm7")]
OSC = Controller(
    "OSC_POSE",
    "world_delta",
    reference="achieved",
    coordinates="base",
    rotation="axis_angle",
    position_scale=0.05,
    rotation_scale=0.5,
    limit=1.0,
)
GRIPPER = Field("right_gripper", (6, 7), closed=1.0, open=-1.0)


def fields(found: tuple[Field, ...]) -> list[tuple[str, int, int, str | None]]:
    return [(f.slot, f.native[0], f.native[1], f.rotation) for f in found]


def test_the_robots_that_the_package_promises_are_there() -> None:
    """Simulated arms, the conventions of two benchmarks, and two real arms."""
    expected = ["franka_panda", "libero_panda", "metaworld_sawyer", "robocasa_panda_omron"]
    assert shipped_embodiments() == [*expected, *OSC_ROBOTS, "so100"]


@pytest.mark.parametrize("name", shipped_embodiments())
def test_a_shipped_robot_fits_its_map(name: str) -> None:
    """It loads, is called as its file, fills only slots there are, and says what it is."""
    robot = embodiment(name)
    slots = slot_map(robot.slot_map)
    assert robot.name == name
    assert robot.description.strip()
    assert robot.control_rate > 0
    for part in (robot.state, robot.action):
        filled = sum(slots.slot(f.slot).width if f.rotation else f.width for f in part)
        assert present(part, slots).sum() == filled
        reserved = [s for s in slots.slots if s.kind == "reserved"]
        assert not any(present(part, slots)[s.start : s.stop].any() for s in reserved)


@pytest.mark.parametrize("name", shipped_embodiments())
def test_joint_limits_are_sane(name: str) -> None:
    """Within two turns and a half, a name each, and as many as the state reports."""
    robot = embodiment(name)
    for joint in robot.joints:
        for limit in (joint.lower, joint.upper):
            assert limit is None or abs(limit) <= 2.5 * math.tau
    names = [joint.name for joint in robot.joints]
    assert len(set(names)) == len(names)
    slots = slot_map(robot.slot_map)
    arm = [f.width for f in robot.state if slots.slot(f.slot).kind == "joint"]
    assert not (arm and names) or arm == [len(names)]


@pytest.mark.parametrize("name", OSC_ROBOTS)
def test_robosuite_arms_speak_osc_pose(name: str) -> None:
    """±5 cm and ±0.5 rad in base axes from the achieved pose; x, y, z, w; -1 open and +1 closed."""
    robot = embodiment(name)
    assert (robot.controller, robot.poses) == (OSC, "base")
    assert fields(robot.state) == [
        ("right_eef_position", 0, 3, None),
        ("right_eef_rotation", 3, 7, "quaternion_xyzw"),
        ("right_gripper", 7, 8, None),
    ]
    assert fields(robot.action)[:2] == [
        ("right_eef_position", 0, 3, None),
        ("right_eef_rotation", 3, 6, "axis_angle"),
    ]
    assert robot.action[2] == GRIPPER
    assert (robot.state_width, robot.action_width, robot.control_rate) == (8, 7, 20.0)
    assert len(robot.joints) == (6 if name == "robosuite_ur5e" else 7)


def test_libero_is_robosuite_in_world_axes() -> None:
    """Its state is an axis-angle and both finger positions, which are no gripper opening."""
    robot = embodiment("libero_panda")
    in_world = dataclasses.replace(OSC, coordinates="world", keeps_rotation=True)
    assert (robot.controller, robot.poses) == (in_world, "world")
    assert fields(robot.state) == [
        ("right_eef_position", 0, 3, None),
        ("right_eef_rotation", 3, 6, "axis_angle"),
        ("finger_positions", 6, 8, None),
    ]
    assert (robot.action[2], robot.control_rate) == (GRIPPER, 20.0)
    filled = present(robot.state, slot_map("unified-200"))
    assert list(np.flatnonzero(filled)) == [0, 1, 2, 3, 4, 5, 44, 45]


def test_robocasas_twelve_numbers_are_in_its_wrappers_order() -> None:
    """Base motion 4, control mode 1, position 3, rotation 3, gripper 1."""
    robot = embodiment("robocasa_panda_omron")
    assert fields(robot.action) == [
        ("base_motion", 0, 4, None),
        ("control_mode", 4, 5, None),
        ("right_eef_position", 5, 8, None),
        ("right_eef_rotation", 8, 11, "axis_angle"),
        ("right_gripper", 11, 12, None),
    ]
    assert robot.action[4].affine == GRIPPER.affine
    assert robot.controller == OSC
    assert robot.views[2] == "robot0_eye_in_hand"
    assert fields(robot.state)[1] == ("base_rotation", 3, 7, "quaternion_xyzw")


def test_metaworld_moves_a_point_by_centimetres() -> None:
    """From where it was commanded to be, at 80 Hz."""
    robot = embodiment("metaworld_sawyer")
    assert robot.controller == Controller(
        "mocap position",
        "world_delta",
        reference="commanded",
        coordinates="world",
        position_scale=0.01,
        limit=1.0,
    )
    assert (robot.control_rate, robot.poses) == (80.0, "world")
    assert fields(robot.action) == [
        ("right_eef_position", 0, 3, None),
        ("right_gripper", 3, 4, None),
    ]
    assert robot.action[1].affine == (-0.5, 0.5)
    assert robot.state[1].affine == (1.0, 0.0)


def test_a_real_franka_takes_absolute_poses_and_so100_only_joints() -> None:
    """The controller of one is a pose; the other has none."""
    franka, so100 = embodiment("franka_panda"), embodiment("so100")
    assert franka.controller == Controller("Cartesian pose", "absolute", rotation="quaternion_xyzw")
    assert [j.upper for j in franka.joints][3] == -0.0698
    assert so100.controller is None
    assert [f.slot for f in so100.action] == ["right_arm_joints", "right_gripper"]
    # Five joints fill five of the seven indices of an arm.
    filled = present(so100.action, slot_map("unified-200"))
    assert list(np.flatnonzero(filled)) == [18, 50, 51, 52, 53, 54]


def test_degrees_become_radians_and_back() -> None:
    """LeRobot's arms speak in degrees, slots in radians; only joints do."""
    robot, slots = robot_and_slots("so100")
    joints = plain_space(robot, "native").unify_state(
        np.array([90.0, -180.0, 45.0, 0.0, 30.0, 25.0])
    )[50:55]
    np.testing.assert_allclose(joints, np.pi * np.array([1 / 2, -1, 1 / 4, 0, 1 / 6]), rtol=1e-15)
    wrong = dataclasses.replace(robot.state[1], closed=None, open=None, degrees=True)
    wrong_robot = dataclasses.replace(robot, state=(robot.state[0], wrong))
    with pytest.raises(ConfigError, match=r"slot 'right_gripper' has degrees, but only joint"):
        check_embodiment(wrong_robot, slots, slots, "so100")


def test_commanded_degrees_become_radians_and_back() -> None:
    """Beside a pose, which the frame is about."""
    franka = embodiment("franka_panda")
    arm = Field("right_arm_joints", (8, 13), degrees=True)
    robot = dataclasses.replace(franka, action=(*franka.action, arm), action_width=13)
    space = plain_space(robot, "world_relative")
    state = np.r_[np.zeros(6), 1.0, np.zeros(8)]
    numbers = np.r_[0.1, 0.2, 0.3, 0, 0, 0, 1.0, 0.02, 90.0, -180.0, 45.0, 0.0, 30.0]
    unified = space.unify(numbers[None], state)
    turns = np.pi * np.array([1 / 2, -1, 1 / 4, 0, 1 / 6])
    np.testing.assert_allclose(unified[0, 50:55], turns, rtol=1e-15)
    x = torch.from_numpy(space.encode(numbers[None], state))
    np.testing.assert_allclose(space.decode(x[None], state[None])[0, 0], numbers, rtol=1e-6)


def plain_space(robot: Embodiment, frame: ActionFrame) -> ActionSpace:
    """Without normalisation."""
    slots = slot_map("unified-200")
    units = VectorStats.units(slots.names())
    plain = Normalizer("state", "none", units), Normalizer("action", "none", units)
    return ActionSpace(robot, slots, slots, frame, *plain)


def test_a_compact_map_keeps_what_the_robot_fills_in_order() -> None:
    """Of state and action together; a slot filled in part shrinks to that part."""
    robot = embodiment("so100")
    small = compact(robot, slot_map("unified-200"))
    assert [(s.name, s.start, s.stop) for s in small.slots] == [
        ("right_gripper", 0, 1),
        ("right_arm_joints", 1, 6),
    ]
    robot = embodiment("libero_panda")
    small = compact(robot, slot_map("unified-200"))
    assert (small.name, small.width) == ("unified-200/libero_panda", 9)
    mine = dataclasses.replace(robot, slot_map=small.name)
    check_embodiment(mine, small, small, "libero")
    assert present(mine.state, small).tolist() == [True] * 6 + [False] + [True] * 2
    assert present(mine.action, small).tolist() == [True] * 7 + [False] * 2


def changed(**changes: Any) -> Embodiment:
    return dataclasses.replace(embodiment("libero_panda"), **changes)


def with_action(*given: Field) -> Embodiment:
    kept = [f for f in embodiment("libero_panda").action if f.slot not in {g.slot for g in given}]
    return changed(action=(*kept, *given))


MISFITS = {
    "an unknown slot": (
        changed(action=(Field("right_claw", (6, 7)),)),
        "libero: action: slot 'right_claw' is not in slot map 'unified-200'; it has right_eef_pos",
    ),
    "a reserved slot": (
        changed(action=(Field("body_reserved", (0, 1)),), action_width=1),
        "slot 'body_reserved' is reserved and cannot be filled",
    ),
    "another map": (changed(slot_map="pad-32"), "slot_map is 'pad-32', the state map is 'unified"),
    "no action": (changed(action=()), "the fields name 0 of 7 numbers, expected all"),
    "a number too far": (changed(action_width=6), r"'right_gripper' takes numbers \[6, 7\] of a"),
    "a number nobody names": (changed(action_width=8), "the fields name 7 of 8 numbers"),
    "one number twice": (
        with_action(Field("left_gripper", (5, 6))),
        "slots 'right_eef_rotation' and 'left_gripper' both take number 5; give every number",
    ),
    "one slot twice": (
        changed(state=(Field("left_gripper", (0, 1)), Field("left_gripper", (1, 2)))),
        "state: slot 'left_gripper' is filled twice; keep one of its fields",
    ),
    "a rotation of unknown kind": (
        with_action(Field("right_eef_rotation", (3, 6))),
        "slot 'right_eef_rotation' is of kind axis_angle; expected rotation = one of axis_angle, r",
    ),
    "a rotation that is none": (
        with_action(Field("right_eef_position", (0, 3), rotation="axis_angle")),
        "slot 'right_eef_position' is of kind position; expected no rotation",
    ),
    "a short quaternion": (
        with_action(Field("right_eef_rotation", (3, 6), rotation="quaternion_wxyz")),
        "slot 'right_eef_rotation' takes 3 native numbers, expected 4",
    ),
    "half a position": (
        changed(state=(Field("right_eef_position", (0, 2)),)),
        "slot 'right_eef_position' takes 2 native numbers, expected 3",
    ),
    "too many joints": (
        changed(state=(Field("right_arm_joints", (0, 8)),)),
        "slot 'right_arm_joints' takes 8 native numbers, expected 7",
    ),
    "a controller that takes another rotation": (
        changed(controller=dataclasses.replace(OSC, rotation="rotation_6d", rotation_scale=1.0)),
        "slot 'right_eef_rotation' is commanded as axis_angle, controller OSC_POSE takes"
        " rotation_6d; declare one of them",
    ),
    "a position that closes": (
        with_action(Field("right_eef_position", (0, 3), closed=0.0, open=1.0)),
        "slot 'right_eef_position' has closed and open but is of kind position, not gripper",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_robot_that_does_not_fit_is_refused_by_slot(name: str) -> None:
    """One sentence that names the file, the part and the slot."""
    robot, sentence = MISFITS[name]
    slots = slot_map("unified-200")
    with pytest.raises(ConfigError, match=sentence) as caught:
        check_embodiment(robot, slots, slots, "libero")
    assert str(caught.value).startswith("libero: ")


ROBOTS: dict[str, tuple[dict[str, Any], str]] = {
    "no rate": ({"control_rate": 0.0}, "control_rate is 0.0, expected more than 0 Hz"),
    "one view twice": ({"views": ("a", "a")}, r"views is \['a', 'a'\]"),
    "no view": (
        {"views": ()},
        r"views is \[\], expected names that differ; name every camera once",
    ),
    "a nameless view": ({"views": ("a", "")}, "a view is '', expected a name"),
    "no name": ({"name": ""}, "the name of a robot is '', expected a name of printable char"),
    "a name of two lines": ({"name": "a\nb"}, r"the name of a robot is 'a\\nb', expected a name"),
    "one joint twice": (
        {"joints": (Joint("a"), Joint("b"), Joint("a"))},
        "two joints are called 'a'; give each its own name",
    ),
    "nothing to command": (
        {"action_width": 0, "action": ()},
        "action_width is 0, expected a whole number from 1 to 65536",
    ),
    "a negative state": ({"state_width": -1}, "state_width is -1, expected .* from 0 to 65536"),
    "an endless action": ({"action_width": 10**30}, "action_width is 10{30}, expected a whole num"),
    "poses nowhere": ({"poses": "camera"}, "poses is 'camera', expected base or world"),
}


@pytest.mark.parametrize("name", ROBOTS)
def test_a_robot_that_contradicts_itself_is_refused(name: str) -> None:
    """Whoever builds it, in Python or from a file."""
    changes, sentence = ROBOTS[name]
    with pytest.raises(ConfigError, match=sentence):
        changed(**changes)


def test_names_that_no_file_can_have_are_refused(tmp_path: Path) -> None:
    """A robot and a robot's map, by name and by path, in one sentence that is not as long."""
    for name in ("x" * 5000, f"{'x' * 5000}.toml", "a/" * 3000 + "b.toml"):
        with pytest.raises(ConfigError, match=r"no embodiment 'x|cannot be read \(") as caught:
            embodiment(name)
        assert len(str(caught.value)) < 500
    path = tmp_path / "mine.toml"
    path.write_text(
        f'name = "mine"\nslot_map = "{"x" * 300}.toml"\ncontrol_rate = 10\nviews = ["front"]\n'
        "state_width = 1\naction_width = 1\nstate = []\naction = []\n"
    )
    with pytest.raises(ConfigError, match=r"cannot be read \(.*expected a path to a TOML file"):
        embodiment(path)


def test_an_unknown_robot_and_a_wrong_file_are_refused(tmp_path: Path) -> None:
    """The sentence names the robots there are; a file's errors begin with its name."""
    with pytest.raises(ConfigError, match=r"no embodiment 'panda'; use franka_panda, .*TOML file"):
        embodiment("panda")
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\nslot_map = "unified-200"\ncontrol_rate = 10\nviews = ["front"]\n'
        "state_width = 1\naction_width = 1\n"
        'state = [{ slot = "gripper", native = [0, 1] }]\n'
        'action = [{ slot = "right_gripper", native = [0, 1] }]\n'
    )
    with pytest.raises(ConfigError, match=r"mine\.toml: state: slot 'gripper' is not in slot map"):
        embodiment(path)
    path.write_text(path.read_text().replace('"gripper"', '"right_gripper"'))
    assert embodiment(path).control_rate == 10.0


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (np.zeros(6), r"state is float64\[6\], libero_panda has \[\.\.\., 8\] .* \(right_eef_posi"),
        (np.zeros(8, int), r"state is int64\[8\]"),
        (np.float64(3.0), r"state is float64\[\]"),
        (np.r_[np.zeros(7), math.nan], r"number 7 \(slot 'finger_positions'\) is not finite"),
        (np.r_[math.inf, np.zeros(7)], r"number 0 \(slot 'right_eef_position'\) is not finite"),
    ],
)
def test_numbers_that_cannot_be_the_robots_are_refused(values: Any, sentence: str) -> None:
    """Width, kind and the slot of what is not finite."""
    robot = embodiment("libero_panda")
    with pytest.raises(InputError, match=sentence):
        check_vector(values, robot.state, robot.state_width, robot.name, "state")
