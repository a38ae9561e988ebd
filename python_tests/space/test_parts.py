"""The parts of a robot's record mean what they say, and refuse what they cannot mean."""

import math

import pytest

from vlakern.errors import ConfigError
from vlakern.space.parts import Controller, Field, Joint


def test_a_gripper_is_0_closed_and_1_open_whatever_its_numbers() -> None:
    """Also where the native number grows when it closes."""
    for closed, wide in ((1.0, -1.0), (0.0, 0.08), (0.4927, 0.0137)):
        scale, offset = Field("g", (0, 1), closed=closed, open=wide).affine
        assert closed * scale + offset == pytest.approx(0.0, abs=1e-15)
        assert wide * scale + offset == pytest.approx(1.0, abs=1e-15)
    assert Field("g", (0, 1)).affine == (1.0, 0.0)


RECORDS = {
    "no range": (lambda: Field("a", (3, 3)), r"slot 'a': native is \[3, 3\], expected \[start"),
    "half a range": (lambda: Field("a", (3,)), r"slot 'a': native is \[3\]"),
    "before 0": (lambda: Field("a", (-1, 2)), r"slot 'a': native is \[-1, 2\]"),
    "half a gripper": (lambda: Field("a", (0, 1), closed=1.0), "closed is 1.0 and open None"),
    "a stuck gripper": (lambda: Field("a", (0, 1), closed=1.0, open=1.0), "two different numbers"),
    "no scale": (lambda: Controller("c", "absolute", position_scale=0.0), "position_scale is 0.0"),
    "no limit": (lambda: Controller("c", "absolute", limit=-1.0), "limit is -1.0, expected more"),
    "a scaled quaternion": (
        lambda: Controller("c", "absolute", rotation="quaternion_xyzw", rotation_scale=0.5),
        "rotation_scale is 0.5, but only axis_angle can be scaled, not quaternion_xyzw",
    ),
    "joint limits": (lambda: Joint("j", 1.0, -1.0), r"joint 'j' has limits \[1\.0, -1\.0\]"),
    "a nameless joint": (lambda: Joint(""), "the name of a joint is '', expected a name of"),
    "an endless range": (lambda: Field("a", (0, 10**30)), "native ends at 10{30}, expected at mo"),
    "a wide range": (lambda: Field("a", (0, 10**8)), "native ends at 100000000, expected at most"),
    "an endless gripper": (
        lambda: Field("a", (0, 1), closed=-1e308, open=1e308),
        r"closed is -1e\+308 and open 1e\+308, expected numbers up to 1e\+30 .* in another unit",
    ),
    "a tiny gripper": (
        lambda: Field("a", (0, 1), closed=0.0, open=1e-320),
        "expected numbers up to .* at least 1e-30 apart",
    ),
    "no gripper": (lambda: Field("a", (0, 1), closed=math.nan, open=1.0), "closed is nan and open"),
    "an absolute pose that keeps": (
        lambda: Controller("c", "absolute", keeps_rotation=True),
        "keeps_rotation is true, but frame absolute, reference achieved, rotation axis_angle; only",
    ),
    "a quaternion that keeps": (
        lambda: Controller("c", "world_delta", rotation="rotation_6d", keeps_rotation=True),
        "keeps_rotation is true, but frame world_delta, .* rotation rotation_6d; only steps",
    ),
    "steps from commands that keep": (
        lambda: Controller("c", "eef_delta", "commanded", keeps_rotation=True),
        "keeps_rotation is true, but frame eef_delta, reference commanded",
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_part_that_contradicts_itself_is_refused(name: str) -> None:
    """Whoever builds it, in Python or from a file."""
    build, sentence = RECORDS[name]
    with pytest.raises(ConfigError, match=sentence):
        build()
