"""What an action space cannot mean or has not got, it refuses by the name of the slot."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from vlakern.errors import ConfigError, InputError
from vlakern.space import (
    ActionSpace,
    Embodiment,
    Field,
    Normalizer,
    Slot,
    SlotMap,
    VectorStats,
    embodiment,
    slot_map,
)
from vlakern.space.action_space import ActionFrame

SLOTS = slot_map("unified-200")
UNITS = VectorStats.units(SLOTS.names())
FRANKA, SAWYER = embodiment("franka_panda"), embodiment("metaworld_sawyer")


def make(
    robot: Embodiment,
    frame: ActionFrame = "eef_relative",
    slots: SlotMap = SLOTS,
    state: VectorStats = UNITS,
    action: VectorStats = UNITS,
) -> ActionSpace:
    normalizers = Normalizer("state", "zscore", state), Normalizer("action", "zscore", action)
    return ActionSpace(robot, slots, slots, frame, *normalizers)


def without(part: str, slot: str, robot: Embodiment = FRANKA) -> Embodiment:
    """A robot that does not measure, or is not commanded, in this slot."""
    kept = tuple(field for field in getattr(robot, part) if field.slot != slot)
    if part == "state":
        return dataclasses.replace(robot, state=kept)
    moved, at = [], 0
    for field in kept:
        moved.append(dataclasses.replace(field, native=(at, at + field.width)))
        at += field.width
    return dataclasses.replace(robot, action=tuple(moved), action_width=at)


def renamed(index: int, name: str) -> VectorStats:
    names = list(SLOTS.names())
    names[index] = name
    return dataclasses.replace(UNITS, names=tuple(names))


def absent(index: int) -> VectorStats:
    return dataclasses.replace(UNITS, present=tuple(i != index for i in range(200)))


def lone_rotation(kind: Any, native: Any) -> Callable[[ActionFrame], ActionSpace]:
    """A robot that is commanded a rotation and nothing else."""
    wide, unit = (3, "rad") if kind == "axis_angle" else (6, "1")
    slots = SlotMap("neck", wide, (Slot("neck_rotation", unit, 0, wide, kind=kind),))
    width = {"axis_angle": 3, "rotation_6d": 6}.get(native, 4)
    field = (Field("neck_rotation", (0, width), rotation=native),)
    robot = Embodiment("neck", "neck", 20.0, ("front",), width, width, field, field)
    units = VectorStats.units(slots.names())
    return lambda frame: make(robot, frame, slots, units, units)


CONTRADICTIONS: dict[str, tuple[Callable[[], object], str]] = {
    "no measured position": (
        lambda: make(without("state", "right_eef_position")),
        "franka_panda: frame eef_relative needs slot 'right_eef_position' in the state",
    ),
    "no measured rotation": (
        lambda: make(without("state", "right_eef_rotation"), "world_delta"),
        "frame world_delta needs slot 'right_eef_rotation' in the state, which does not have it",
    ),
    "no commanded rotation": (
        lambda: make(without("action", "right_eef_rotation")),
        "frame eef_relative needs slot 'right_eef_rotation' in the action",
    ),
    "a hand that never turns": (
        lambda: make(SAWYER, "eef_delta"),
        "frame eef_delta needs slot 'right_eef_rotation' in the action.* never turns has the world",
    ),
    "no such frame": (
        lambda: make(FRANKA, "hand_relative"),  # pyright: ignore[reportArgumentType]
        "action frame is 'hand_relative', expected one of native, world_relative, world_delta",
    ),
    "state statistics of another map": (
        lambda: make(FRANKA, state=renamed(50, "elbow")),
        "franka_panda: state statistics: .*'elbow'.*'right_arm_joints.0'",
    ),
    "action statistics of another map": (
        lambda: make(FRANKA, action=renamed(18, "claw")),
        "franka_panda: action statistics: .*'claw'.*'right_gripper'",
    ),
    "statistics of another width": (
        lambda: make(FRANKA, action=VectorStats.units(("a", "b"))),
        "franka_panda: action statistics: ",
    ),
    "statistics without a slot": (
        lambda: make(FRANKA, action=absent(18)),
        "the action statistics lack slot 'right_gripper', which the robot has; compute them",
    ),
    "state statistics without an index": (
        lambda: make(FRANKA, state=absent(52)),
        r"the state statistics lack slot 'right_arm_joints\.2'",
    ),
    "an unknown slot": (
        lambda: make(dataclasses.replace(SAWYER, action=(Field("claw", (0, 4)),))),
        "metaworld_sawyer: action: slot 'claw' is not in slot map 'unified-200'",
    ),
    "native numbers of another kind": (
        lambda: make(FRANKA, "native"),
        "frame native passes numbers as they are, but slot 'right_eef_rotation' is axis_angle and"
        " the action has quaternion_xyzw; use one of the other frames",
    ),
    "a rotation on its own": (
        lambda: lone_rotation("rotation_6d", "quaternion_wxyz")("eef_relative"),
        "slot 'neck_rotation' of the action is a rotation without the slot 'neck_position'",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_refused_when_it_is_built(name: str) -> None:
    """Never at the first action, and always by the slot."""
    build, sentence = CONTRADICTIONS[name]
    with pytest.raises(ConfigError, match=sentence) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("frame", ["world_relative", "world_delta", "eef_relative", "eef_delta"])
def test_without_a_pose_there_is_only_the_frame_native(frame: ActionFrame) -> None:
    """Otherwise the frame would be ignored: for joints, padded vectors and a rotation on its own,
    even where its numbers mean the same in slot and command."""
    so100, padded = embodiment("so100"), slot_map("pad-32")
    vector = (Field("vector", (0, 7)),)
    arm = Embodiment("arm", "pad-32", 20.0, ("front",), 7, 7, vector, vector)
    units = VectorStats.units(padded.names())
    with pytest.raises(ConfigError, match=rf"^so100: frame {frame} needs a slot of kind position"):
        make(so100, frame)
    with pytest.raises(ConfigError, match=r"^arm: frame .*and there is none; use the frame native"):
        make(arm, frame, padded, units, units)
    with pytest.raises(
        ConfigError, match=r"'neck_rotation' of .* without the slot 'neck_position'"
    ):
        lone_rotation("axis_angle", "axis_angle")(frame)
    make(so100, "native")
    make(arm, "native", padded, units, units)
    turns = np.array([[[0.1, -0.2, 0.3], [1.0, 0.0, 0.0]]])
    space = lone_rotation("axis_angle", "axis_angle")("native")
    x = space.encode(turns, turns[:, 0])
    np.testing.assert_allclose(x[..., :3], turns, atol=1e-7)


def numbers() -> tuple[np.ndarray, np.ndarray]:
    """A state and commands that pass."""
    state, commands = np.zeros((2, 15)), np.zeros((2, 4, 8))
    state[:, 6] = 1.0
    commands[..., 6] = 1.0
    return state, commands


def put(values: np.ndarray, column: int, value: float) -> np.ndarray:
    out = values.copy()
    out[-1, ..., column] = value
    return out


S, C = numbers()
NUMBERS: dict[str, tuple[Any, Any, str]] = {
    "a long quaternion": (
        put(S, 6, 1.01),
        C,
        r"slot 'right_eef_rotation': a unit quaternion .* at",
    ),
    "a command's quaternion": (S, put(C, 6, 0.5), r"slot 'right_eef_rotation': a unit quaternion"),
    "no position": (put(S, 1, math.nan), C, r"state number 1 \(slot 'right_eef_position'\) is not"),
    "an endless joint": (put(S, 14, math.inf), C, r"state number 14 \(slot 'right_arm_joints'\)"),
    "no gripper": (
        S,
        put(C, 7, math.nan),
        r"action number 7 \(slot 'right_gripper'\) is not finite",
    ),
    "a wide command": (
        S,
        np.zeros((2, 4, 9)),
        r"action is float64\[2, 4, 9\], franka_panda has \[",
    ),
    "a short state": (S[:, :14], C, r"state is float64\[2, 14\], franka_panda has \[\.\.\., 15\]"),
    "whole numbers": (S, C.astype(int), r"action is int64\[2, 4, 8\]"),
    "one state for two": (S[0], C, r"action is \[2, 4, 8\] beside a state \[15\], expected"),
    "one step": (S, C[:, 0], r"action is \[2, 8\] beside a state \[2, 15\]"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_no_command_are_refused(name: str) -> None:
    """By the slot and the place, in training as on the robot."""
    state, commands, sentence = NUMBERS[name]
    with pytest.raises(InputError, match=sentence) as caught:
        make(FRANKA).unify(commands, state)
    assert "\n" not in str(caught.value)
    if commands is C and state.ndim == 2:
        with pytest.raises(InputError, match=sentence):
            make(FRANKA).encode_state(state)
        with pytest.raises(InputError, match=sentence):
            make(FRANKA).decode(torch.zeros(2, 4, 200), state)


class Thing:
    """No array, and none of its business."""


NO_NUMBERS: dict[str, tuple[Any, str]] = {
    "a ragged list": ([[0.0] * 15, [0.0] * 14], "is a list that is no array"),
    "bf16": (torch.zeros(2, 15, dtype=torch.bfloat16), "is a Tensor that is no array"),
    "a gradient": (torch.zeros(2, 15, requires_grad=True), "is a Tensor that is no array"),
    "nothing": (None, r"is object\[\], franka_panda has \[\.\.\., \d+\] floating-point numbers"),
    "words": ("stop", r"is <U4\[\], franka_panda has"),
    "a list of words": (["stop"] * 15, r"is <U4\[15\], franka_panda has"),
    "objects": ([Thing()] * 15, r"is object\[15\], franka_panda has"),
    "more than fp64 has": (np.full((2, 15), np.longdouble("1e4000")), "number 0 .* is not finite"),
}


@pytest.mark.parametrize("name", NO_NUMBERS)
def test_what_is_no_array_is_refused(name: str) -> None:
    """As a state and as a command, by every method that takes one."""
    given, sentence = NO_NUMBERS[name]
    space = make(FRANKA)
    calls: list[tuple[str, Callable[[], object]]] = [
        ("state", lambda: space.encode_state(given)),
        ("state", lambda: space.base(given)),
        ("state", lambda: space.unify(C, given)),
        ("state", lambda: space.decode(torch.zeros(2, 4, 200), given)),
    ]
    if not name.startswith("more"):
        calls += [
            ("action", lambda: space.unify(given, S)),
            ("action", lambda: space.encode(given, S)),
        ]
    for what, call in calls:
        with pytest.raises(InputError, match=rf"^{what} {sentence}") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_flags_of_a_chunk_are_checked() -> None:
    """In every frame; a list of flags is one of them."""
    flags = [[True, True, False, False]] * 2
    space = make(FRANKA)
    assert np.array_equal(space.unify(C, S, np.array(flags)), space.unify(C, S, flags))  # pyright: ignore[reportArgumentType]
    libero = make(embodiment("libero_panda"), "native")
    for space, commands, state in (
        (make(FRANKA, "eef_delta"), C, S),
        (libero, np.zeros((2, 4, 7)), np.zeros((2, 8))),
    ):
        for wrong in ([[1, 1, 0, 0]] * 2, flags[0], "yes", [[True], [True, False]]):
            with pytest.raises(InputError, match=r"^valid is (int64|bool|<U3)?.*; give"):
                space.unify(commands, state, wrong)  # pyright: ignore[reportArgumentType]


def test_numbers_that_pass_pass() -> None:
    """The refusals above are not of everything."""
    make(FRANKA).unify(C, S)
    make(FRANKA).decode(torch.zeros(2, 4, 200), S)


@pytest.mark.parametrize(
    ("index", "value", "slot"),
    [
        (18, math.nan, "right_gripper"),
        (1, math.inf, "right_eef_position"),
        (4, math.nan, "rotation"),
    ],
)
def test_a_model_that_breaks_is_named_by_slot(index: int, value: float, slot: str) -> None:
    """What is not finite never reaches the robot."""
    x = torch.zeros(2, 4, 200)
    x[1, 2, index] = value
    with pytest.raises(InputError, match=rf"predicted action number \d .*{slot}'\) is not finite"):
        make(FRANKA).decode(x, S)
    x = torch.zeros(2, 4, 200)
    x[1, 2, 60] = value
    assert np.isfinite(make(FRANKA).decode(x, S)).all(), "a slot that the robot has not got"


@pytest.mark.parametrize("shape", [(2, 4, 199), (4, 200), (3, 4, 200), (1, 2, 4, 200)])
def test_chunks_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    """Width, rank, and as many rows as states."""
    with pytest.raises(
        InputError, match=r"chunks are .* beside a state \[2, 15\], expected \[B, H"
    ):
        make(FRANKA).decode(torch.zeros(shape), S)


def test_nothing_is_clamped() -> None:
    """A command far beyond anything seen in training is the command."""
    commands = put(C, 0, 50.0)
    commands = put(commands, 7, 3.0)
    space = make(FRANKA)
    found = space.decode(torch.from_numpy(space.encode(commands, S)), S)
    np.testing.assert_allclose(found[..., [0, 7]], commands[..., [0, 7]], rtol=1e-6)
