"""The parts of a robot's record: fields of its vectors, its controller, its joints."""

import math
from dataclasses import dataclass
from typing import Literal

from vlakern.errors import ConfigError
from vlakern.space.rotation import Kind
from vlakern.space.slots import MOST_WIDTH, check_name

__all__ = ["Controller", "Field", "Joint"]

# The inverse of a gripper's map is computed in fp32.
SMALLEST_SPAN, LARGEST_NUMBER = 1e-30, 1e30


@dataclass(frozen=True)
class Field:
    """One run of a native vector and the slot it belongs to.

    Attributes:
        slot: name in the embodiment's slot map.
        native: indices ``[start, stop)`` of the native vector.
        rotation: how a rotation is written there, with its quaternion order; None where the slot is
            no rotation.
        closed, open: native values of a gripper, which is 0 closed to 1 open in its slot; None
            where the native number goes to the slot as it is. At most 1e30 large and at least 1e-30
            apart.
        degrees: the native numbers are angles in degrees; slots hold radians.
    """

    slot: str
    native: tuple[int, ...]
    rotation: Kind | None = None
    closed: float | None = None
    open: float | None = None
    degrees: bool = False

    def __post_init__(self) -> None:
        if len(self.native) != 2 or not 0 <= self.native[0] < self.native[1]:
            raise ConfigError(
                f"slot {self.slot!r}: native is {list(self.native)}, expected [start, stop] with"
                " 0 <= start < stop"
            )
        if self.native[1] > MOST_WIDTH:
            raise ConfigError(
                f"slot {self.slot!r}: native ends at {str(self.native[1])[:40]}, expected at most"
                f" {MOST_WIDTH}"
            )
        if (self.closed is None) != (self.open is None) or (
            self.closed is not None and self.closed == self.open
        ):
            raise ConfigError(
                f"slot {self.slot!r}: closed is {self.closed} and open {self.open}, expected two"
                " different numbers or neither"
            )
        if self.closed is not None and self.open is not None:
            largest, span = max(abs(self.closed), abs(self.open)), abs(self.open - self.closed)
            # Written so that NaN is refused.
            if not (largest <= LARGEST_NUMBER and span >= SMALLEST_SPAN):
                raise ConfigError(
                    f"slot {self.slot!r}: closed is {self.closed} and open {self.open}, expected"
                    f" numbers up to {LARGEST_NUMBER:g} that are at least {SMALLEST_SPAN:g} apart;"
                    " declare them in another unit"
                )

    @property
    def width(self) -> int:
        """Number of native values."""
        return self.native[1] - self.native[0]

    @property
    def affine(self) -> tuple[float, float]:
        """``(scale, offset)`` with slot = scale · native + offset."""
        if self.degrees:
            return math.pi / 180.0, 0.0
        if self.closed is None or self.open is None:
            return 1.0, 0.0
        scale = 1.0 / (self.open - self.closed)
        return scale, -self.closed * scale


@dataclass(frozen=True)
class Controller:
    """What the numbers mean that the robot's end-effector controller takes.

    Attributes:
        name: as its maker calls it.
        frame: ``absolute`` poses, or one of the four parametrisations; each step is on its own, so
            that relative and delta are the same here.
        reference: the pose that a step starts from: the one ``achieved`` or the last ``commanded``.
        coordinates: axes of its numbers: the robot's ``base`` or the ``world``. Numbers of an
            ``eef`` frame lie along the hand's own axes whichever it is.
        rotation: how it takes rotations.
        position_scale: [m] per native unit.
        rotation_scale: [rad] per native unit.
        limit: largest magnitude of a native number of a pose; None for no limit.
        keeps_rotation: a rotation of exactly 0 leaves the orientation where it was last commanded,
            although steps start from the achieved pose, as robosuite 1.4 does.
    """

    name: str
    frame: Literal["absolute", "world_relative", "world_delta", "eef_relative", "eef_delta"]
    reference: Literal["achieved", "commanded"] = "achieved"
    coordinates: Literal["base", "world"] = "base"
    rotation: Kind = "axis_angle"
    position_scale: float = 1.0
    rotation_scale: float = 1.0
    limit: float | None = None
    keeps_rotation: bool = False

    def __post_init__(self) -> None:
        for name in ("position_scale", "rotation_scale", "limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"controller.{name} is {value}, expected more than 0")
        if self.rotation_scale != 1.0 and self.rotation != "axis_angle":
            raise ConfigError(
                f"controller.rotation_scale is {self.rotation_scale}, but only axis_angle can be"
                f" scaled, not {self.rotation}"
            )
        steps = self.frame != "absolute" and self.reference == "achieved"
        if self.keeps_rotation and not (steps and self.rotation == "axis_angle"):
            raise ConfigError(
                f"controller.keeps_rotation is true, but frame {self.frame}, reference"
                f" {self.reference}, rotation {self.rotation}; only steps from the achieved pose,"
                " as axis_angle, can be 0 and keep a rotation"
            )


@dataclass(frozen=True)
class Joint:
    """A joint and its limits [rad], or [m] if it slides; None on a side without one."""

    name: str
    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        check_name(self.name, "the name of a joint")
        if self.lower is not None and self.upper is not None and not self.lower < self.upper:
            raise ConfigError(
                f"joint {self.name!r} has limits [{self.lower}, {self.upper}], expected the lower"
                " first"
            )
