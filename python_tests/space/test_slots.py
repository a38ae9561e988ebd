"""The maps that ship are the published ones; contradictions in a map are refused by name."""

import itertools
from pathlib import Path

import pytest

from vlakern.errors import ConfigError
from vlakern.space import Slot, SlotMap, check_slots, slot_map
from vlakern.space.slots import Group

HAND = Slot("hand position", "m", 0, 3)
GRIP = Slot("gripper", "1", 3, 4)


def test_slots_in_order_pass_and_need_not_fill_the_vector() -> None:
    """Reserved indices between and after slots are legal."""
    check_slots([], 4, "state")
    check_slots([HAND, GRIP], 4, "state")
    check_slots([GRIP, HAND, Slot("base", "m", 6, 8)], 10, "state")


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (2, 4), (1, 2), (0, 3), (2, 3)], ids=lambda n: str(n)
)
def test_an_overlap_names_both(start: int, stop: int) -> None:
    """At either end, inside, or the same range; in whatever order they are given."""
    other = Slot("wrist", "rad", start, stop)
    for slots in itertools.permutations([HAND, other]):
        with pytest.raises(ConfigError, match=r"state: slots '.*\) and '.*\) overlap") as caught:
            check_slots(slots, 4, "state")
        assert "hand position" in str(caught.value)
        assert "wrist" in str(caught.value)


def test_an_overlap_far_from_its_neighbour_is_found() -> None:
    """A long slot that covers several short ones."""
    short = [Slot(f"joint {i}", "rad", i, i + 1) for i in range(1, 6)]
    with pytest.raises(ConfigError, match=r"slots 'all' \[0, 6\) and 'joint 1' \[1, 2\) overlap"):
        check_slots([*short, Slot("all", "rad", 0, 6)], 8, "action")


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 5), (2, 2), (3, 1)])
def test_a_range_outside_the_vector_is_refused(start: int, stop: int) -> None:
    """Negative, beyond the width, empty or backwards."""
    with pytest.raises(ConfigError, match=rf"state: slot 'x' covers \[{start}, {stop}\)"):
        check_slots([Slot("x", "m", start, stop)], 4, "state")


def test_a_name_is_used_once() -> None:
    """Two slots of one name could not be told apart in a message."""
    with pytest.raises(ConfigError, match="two slots are called 'gripper'"):
        check_slots([GRIP, Slot("gripper", "1", 0, 1)], 4, "state")


def test_an_unknown_unit_is_refused() -> None:
    """The sentence names the units there are."""
    with pytest.raises(ConfigError, match="unit 'deg'; known are m, rad"):
        check_slots([Slot("x", "deg", 0, 1)], 4, "state")


# Name, first index, one past the last, unit, side and kind: written out once more, so that the file
# that ships has something to disagree with.
UNIFIED = [
    ("right_eef_position", 0, 3, "m", "right", "position"),
    ("right_eef_rotation", 3, 6, "rad", "right", "axis_angle"),
    ("right_eef_reserved", 6, 9, "1", "right", "reserved"),
    ("left_eef_position", 9, 12, "m", "left", "position"),
    ("left_eef_rotation", 12, 15, "rad", "left", "axis_angle"),
    ("left_eef_reserved", 15, 18, "1", "left", "reserved"),
    ("right_gripper", 18, 19, "1", "right", "gripper"),
    ("left_gripper", 19, 20, "1", "left", "gripper"),
    ("right_hand_joints", 20, 26, "rad", "right", "hand"),
    ("right_hand_reserved", 26, 32, "1", "right", "reserved"),
    ("left_hand_joints", 32, 38, "rad", "left", "hand"),
    ("left_hand_reserved", 38, 44, "1", "left", "reserved"),
    ("finger_positions", 44, 46, "m", "", "other"),
    ("finger_reserved", 46, 50, "1", "", "reserved"),
    ("right_arm_joints", 50, 57, "rad", "right", "joint"),
    ("left_arm_joints", 57, 64, "rad", "left", "joint"),
    ("head_joints", 64, 66, "rad", "", "head"),
    ("waist_joints", 66, 69, "rad", "", "waist"),
    ("body_reserved", 69, 70, "1", "", "reserved"),
    ("base_position", 70, 73, "m", "", "base"),
    ("base_motion", 73, 74, "1", "", "base"),
    ("control_mode", 74, 75, "1", "", "mode"),
    ("base_reserved", 75, 90, "1", "", "reserved"),
    ("right_mano_shape", 90, 100, "1", "right", "hand"),
    ("left_mano_shape", 100, 110, "1", "left", "hand"),
    ("right_mano_pose", 110, 155, "rad", "right", "hand"),
    ("left_mano_pose", 155, 200, "rad", "left", "hand"),
]


def rows(found: SlotMap) -> list[tuple[str, int, int, str, str, str]]:
    return [(s.name, s.start, s.stop, s.unit, s.side, s.kind) for s in found.slots]


def test_unified_200_is_the_published_layout_index_by_index() -> None:
    """Every index has its slot, none is without one, and the groups cover all of it."""
    found = slot_map("unified-200")
    assert (found.name, found.width) == ("unified-200", 200)
    assert rows(found) == UNIFIED
    expected = [
        name if stop - start == 1 else f"{name}.{i - start}"
        for name, start, stop, *_ in UNIFIED
        for i in range(start, stop)
    ]
    assert list(found.names()) == expected
    covered = [i for group in found.groups for i in range(group.start, group.stop)]
    assert covered == list(range(200))


def test_pad_32_is_one_slot_of_the_robots_own_numbers() -> None:
    """The openpi family's vector."""
    found = slot_map("pad-32")
    assert rows(found) == [("vector", 0, 32, "1", "", "other")]
    assert found.width == 32
    assert found.names()[31] == "vector.31"


def test_the_map_for_arms_on_a_base_differs_in_the_base_alone() -> None:
    """Base motion has four indices there, and the base's pose lies where nothing else does."""
    found = slot_map("unified-200-robocasa")
    same = [row for row in UNIFIED if not 70 <= row[1] < 90]
    assert [row for row in rows(found) if not 70 <= row[1] < 90] == same
    assert [row for row in rows(found) if 70 <= row[1] < 90] == [
        ("base_motion", 70, 74, "1", "", "base"),
        ("control_mode", 74, 75, "1", "", "mode"),
        ("base_reserved", 75, 76, "1", "", "reserved"),
        ("base_rotation", 76, 80, "1", "", "quaternion_xyzw"),
        ("base_position", 80, 83, "m", "", "base"),
        ("base_more_reserved", 83, 90, "1", "", "reserved"),
    ]


def test_the_map_of_six_number_rotations_fills_the_reserved_indices() -> None:
    """Position and the rest stay where they are; a pose has no index to spare."""
    turned = {name: stop for name, _, stop, *_ in UNIFIED if name.endswith("eef_reserved")}
    expected = []
    for row in UNIFIED:
        name, start = row[:2]
        if name.endswith("eef_rotation"):
            stop = turned[name.replace("rotation", "reserved")]
            row = (name, start, stop, "1", row[4], "rotation_6d")
        if name not in turned:
            expected.append(row)
    assert rows(slot_map("unified-200-6d")) == expected


def test_a_slot_is_found_by_name_and_a_missing_one_names_its_neighbours() -> None:
    """Those that begin with the same word, not all two hundred."""
    found = slot_map("unified-200")
    assert found.slot("left_gripper") == Slot("left_gripper", "1", 19, 20, "left", "gripper")
    with pytest.raises(ConfigError, match="arm: slot 'left_claw' is not in slot map") as caught:
        found.slot("left_claw", "arm")
    assert "left_gripper" in str(caught.value)
    assert "right" not in str(caught.value)


def test_an_unknown_map_and_a_broken_file_are_refused(tmp_path: Path) -> None:
    """The sentence names the maps there are; a file is named by its name."""
    with pytest.raises(
        ConfigError, match=r"'unified-300'; use pad-32, unified-200, unified-200-6d"
    ):
        slot_map("unified-300")
    with pytest.raises(ConfigError, match=r"nowhere\.toml is missing; expected a TOML file"):
        slot_map(tmp_path / "nowhere.toml")
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nwidth = 2\nslots = [{ name = "a", unit = "m", start = 0 }]')
    with pytest.raises(ConfigError, match=r"mine\.toml\.slots\[0\]: key 'stop' of Slot is missing"):
        slot_map(path)


def test_a_map_of_ones_own_is_read(tmp_path: Path) -> None:
    """With sides, kinds and groups."""
    path = tmp_path / "mine.toml"
    path.write_text(
        'name = "mine"\nwidth = 4\n'
        'slots = [{ name = "tip_position", unit = "m", start = 1, stop = 4, kind = "position" }]\n'
        'groups = [{ name = "tip", start = 1, stop = 4 }]\n'
    )
    found = slot_map(path)
    assert found.names() == ("unnamed.0", "tip_position.0", "tip_position.1", "tip_position.2")
    assert found.slots[0].kind == "position"


JOINT, CLAW = Slot("joint", "rad", 0, 2, kind="joint"), Slot("claw", "1", 3, 4, kind="gripper")
MAPS = {
    "a hole": (
        (JOINT, CLAW),
        (Group("arm", 0, 4),),
        r"group 'arm' has a gap \[2, 3\) between slot 'joint' and slot 'claw'; declare it reserved",
    ),
    "a hole first": (
        (CLAW,),
        (Group("arm", 2, 4),),
        r"gap \[2, 3\) between the start of group 'arm' and slot 'claw'",
    ),
    "a hole last": (
        (JOINT,),
        (Group("arm", 0, 5),),
        r"gap \[2, 5\) between slot 'joint' and the end of group 'arm'",
    ),
    "nothing": ((), (Group("arm", 0, 1),), r"between the start of group 'arm' and the end of"),
    "a slot across the border": (
        (JOINT,),
        (Group("arm", 1, 2),),
        r"slot 'joint' \[0, 2\) crosses the border of group 'arm' \[1, 2\)",
    ),
    "a group outside": ((JOINT,), (Group("arm", 0, 7),), r"group 'arm' covers \[0, 7\), expected"),
    "a group twice": (
        (JOINT,),
        (Group("arm", 0, 2), Group("arm", 0, 2)),
        "two groups are called 'arm'",
    ),
    "one name": (
        (JOINT, Slot("joint", "1", 3, 4)),
        (),
        r"two slots are called 'joint', \[0, 2\) and \[3, 4\); give each its own name",
    ),
    "one index name": (
        (JOINT, Slot("joint.1", "1", 3, 4)),
        (),
        r"two indices are called 'joint\.1'; rename one",
    ),
    "a unit": ((Slot("a", "cm", 0, 1),), (), r"slot 'a' has unit 'cm'; known are m, rad, m/s"),
    "a kind": (
        (Slot("a", "m", 0, 1, kind="arm"),),  # pyright: ignore[reportArgumentType]
        (),
        r"slot 'a' has kind 'arm'; known are position, axis_angle",
    ),
    "a flat position": (
        (Slot("a_position", "m", 0, 2, kind="position"),),
        (),
        r"slot 'a_position' of kind position covers 2 indices, expected 3",
    ),
    "a nameless position": (
        (Slot("tool", "m", 0, 3, kind="position"),),
        (),
        r"slot 'tool' of kind position needs a name that ends in _position",
    ),
    "a nameless rotation": (
        (Slot("a_turn", "rad", 0, 3, kind="axis_angle"),),
        (),
        r"slot 'a_turn' of kind axis_angle needs a name that ends in _rotation, by which its pos",
    ),
    "a position in radians": (
        (Slot("a_position", "rad", 0, 3, kind="position"),),
        (),
        r"slot 'a_position' of kind position has unit 'rad', expected m; use kind other",
    ),
    "a quaternion in radians": (
        (Slot("a_rotation", "rad", 0, 4, kind="quaternion_wxyz"),),
        (),
        r"kind quaternion_wxyz has unit 'rad', expected 1",
    ),
    "an axis-angle without a unit": (
        (Slot("a_rotation", "1", 0, 3, kind="axis_angle"),),
        (),
        r"slot 'a_rotation' of kind axis_angle has unit '1', expected rad",
    ),
    "a joint in nothing": (
        (Slot("a", "1", 0, 1, kind="joint"),),
        (),
        r"slot 'a' of kind joint has unit '1', expected rad or m",
    ),
    "a gripper in metres": ((Slot("a", "m", 0, 1, kind="gripper"),), (), "unit 'm', expected 1"),
    "a hand on two sides": (
        (
            Slot("a_position", "m", 0, 3, "left", "position"),
            Slot("a_rotation", "rad", 3, 6, "right", "axis_angle"),
        ),
        (),
        r"slots 'a_position' of side 'left' and 'a_rotation' of side 'right' are one end-effector",
    ),
    "a side": (
        (Slot("a", "m", 0, 1, "up"),),  # pyright: ignore[reportArgumentType]
        (),
        "slot 'a' has side 'up'; known are left, right and ''",
    ),
    "a slot without a name": ((Slot(" ", "m", 0, 1),), (), "the name of a slot is ' ', expected"),
    "a name of two lines": ((Slot("a\nb", "m", 0, 1),), (), r"name of a slot is 'a\\nb', expected"),
    "a group without a name": ((JOINT,), (Group("", 0, 2),), "the name of a group is '', expected"),
    "groups that overlap": (
        (JOINT, Slot("spare", "1", 2, 3), CLAW),
        (Group("arm", 0, 3), Group("hand", 2, 4)),
        r"groups 'arm' \[0, 3\) and 'hand' \[2, 4\) overlap; give every index to one group",
    ),
    "no slots": ((), (), "it has no slots; declare at least one"),
    "a wide quaternion": (
        (Slot("a", "1", 0, 5, kind="quaternion_wxyz"),),
        (),
        r"slot 'a' of kind quaternion_wxyz covers 5 indices, expected 4",
    ),
    "a short 6-D": (
        (Slot("a", "1", 0, 3, kind="rotation_6d"),),
        (),
        r"slot 'a' of kind rotation_6d covers 3 indices, expected 6",
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_that_contradicts_itself_is_refused(name: str) -> None:
    """In one sentence that names the map and both sides."""
    slots, groups, sentence = MAPS[name]
    with pytest.raises(ConfigError, match=sentence) as caught:
        SlotMap("mine", 6, slots, groups)
    assert str(caught.value).startswith("slot map 'mine': ")


@pytest.mark.parametrize("width", [0, -1, 1 << 17, 10**30, True])
def test_a_vector_has_a_width_that_a_robot_can_have(width: int) -> None:
    """A damaged file is refused before anything of that size is built."""
    with pytest.raises(ConfigError, match=rf"width is {width}, expected .* from 1 to 65536"):
        SlotMap("mine", width, (GRIP,))


def test_a_map_has_a_name() -> None:
    """Statistics and robots refer to it."""
    with pytest.raises(ConfigError, match="the name of a slot map is '', expected a name of print"):
        SlotMap("", 5, (GRIP,))


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + ".toml", "a/" * 3000 + "b.toml"])
def test_a_name_that_no_file_can_have_is_refused(name: str) -> None:
    """In one sentence that is not as long."""
    with pytest.raises(ConfigError, match=r"no slot map 'x|cannot be read \(") as caught:
        slot_map(name)
    assert len(str(caught.value)) < 300


def test_the_padded_vector_says_what_it_is_for() -> None:
    """Nothing tells which of its numbers are a pose."""
    assert "frame native only" in slot_map("pad-32").description.replace("\n", " ")


def test_a_closed_group_passes() -> None:
    """In any order, beside slots outside; a reserved slot fills a hole."""
    spare = Slot("spare", "1", 2, 3, kind="reserved")
    SlotMap("mine", 9, (CLAW, spare, JOINT, Slot("far", "m", 7, 8)), (Group("arm", 0, 4),))
