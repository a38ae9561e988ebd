"""An end-effector is a position with its rotation, wherever the numbers of both lie."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation as Peer

from vlakern.errors import InputError
from vlakern.space import Field, Pose, Rotation, Slot, SlotMap, embodiment, slot_map
from vlakern.space.hands import hands

SLOTS = SlotMap(
    "two",
    20,
    (
        Slot("tip_position", "m", 0, 3, kind="position"),
        Slot("tip_rotation", "1", 3, 9, kind="rotation_6d"),
        Slot("tool_position", "m", 9, 12, kind="position"),
        Slot("neck_rotation", "rad", 12, 15, kind="axis_angle"),
        Slot("base_position", "m", 15, 18, kind="base"),
    ),
)
FIELDS = (
    Field("tool_position", (0, 3)),
    Field("tip_rotation", (3, 7), rotation="quaternion_wxyz"),
    Field("base_position", (7, 10)),
    Field("tip_position", (10, 13)),
    Field("neck_rotation", (13, 16), rotation="axis_angle"),
)


def test_hands_are_found_by_kind_and_name() -> None:
    """Every slot of kind position is one; a rotation without a position is none."""
    found = hands(FIELDS, SLOTS)
    assert [hand.name for hand in found] == ["tool", "tip"]
    assert found[0].rotation is None
    assert found[1].rotation == FIELDS[1]
    assert found[1].rotation_slot == SLOTS.slots[1]
    assert found[1].state_of(hands(FIELDS[3:], SLOTS)) is not None
    assert found[0].state_of(hands(FIELDS[3:], SLOTS)) is None


def test_unified_200_has_two_hands_and_its_base_is_none() -> None:
    """The base's position passes through as it is."""
    robot = embodiment("robocasa_panda_omron")
    slots = slot_map(robot.slot_map)
    assert [hand.name for hand in hands(robot.state, slots)] == ["right_eef"]
    both = [Field(f"{s}_eef_position", (i, i + 3)) for i, s in ((0, "left"), (3, "right"))]
    assert [hand.name for hand in hands(both, slots)] == ["left_eef", "right_eef"]


def test_a_pose_is_read_and_written_where_it_lies() -> None:
    """Scipy's quaternion in the declared order; no other column is touched."""
    rng = np.random.default_rng(0)
    tip = hands(FIELDS, SLOTS)[1]
    native, turn = rng.normal(size=(4, 16)), Peer.from_quat(rng.normal(size=(4, 4)))
    native[:, 3:7] = np.roll(turn.as_quat(), 1, axis=1)
    pose = tip.read(torch.from_numpy(native))
    np.testing.assert_allclose(pose.rotation.matrix().numpy(), turn.as_matrix(), atol=1e-12)
    assert np.array_equal(pose.position.numpy(), native[:, 10:13])
    out = torch.full((4, 16), 7.0, dtype=torch.float64)
    tip.write(pose, out)
    read = out.numpy()
    sign = np.sign((read[:, 3:7] * native[:, 3:7]).sum(1, keepdims=True))
    np.testing.assert_allclose(sign * read[:, 3:7], native[:, 3:7], atol=1e-12)
    assert np.array_equal(read[:, 10:13], native[:, 10:13])
    assert (read[:, [0, 1, 2, 7, 8, 9, 13, 14, 15]] == 7.0).all()
    row = tip.base_row(torch.from_numpy(native)).numpy()
    np.testing.assert_allclose(row[:, :3], native[:, 10:13])
    found = Peer.from_quat(np.roll(row[:, 3:], -1, axis=1)).as_matrix()
    np.testing.assert_allclose(found, turn.as_matrix(), atol=1e-12)


def test_a_hand_that_never_turns_has_the_identity() -> None:
    """And writing any rotation into it changes nothing but the position."""
    tool = hands(FIELDS, SLOTS)[0]
    values = torch.arange(16.0, dtype=torch.float64)
    pose = tool.read(values)
    assert pose.rotation.write("quaternion_wxyz").tolist() == [1.0, 0.0, 0.0, 0.0]
    turned = Rotation.read(torch.tensor([1.0, 0, 0], dtype=torch.float64), "axis_angle")
    tool.write(Pose(pose.position + 1, turned), values)
    assert values.tolist() == [1.0, 2.0, 3.0, *map(float, range(3, 16))]


def test_a_quaternion_that_is_none_names_its_slot() -> None:
    """Norm 2 is no rotation, whatever its direction."""
    tip = hands(FIELDS, SLOTS)[1]
    values = torch.zeros(16, dtype=torch.float64)
    values[3] = 2.0
    with pytest.raises(InputError, match=r"slot 'tip_rotation': a unit quaternion .* norm 2"):
        tip.read(values)
