"""End-effectors in a robot's vectors: which fields make a pose, and reading and writing it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlakern.space.embodiment import Field
from vlakern.space.frames import Pose
from vlakern.space.rotation import Rotation
from vlakern.space.slots import Slot, SlotMap

__all__ = ["Hand", "hands"]


@dataclass(frozen=True)
class Hand:
    """An end-effector: the fields of its position and rotation, and the slots they go to.

    One without a rotation never turns.
    """

    position: Field
    rotation: Field | None
    position_slot: Slot
    rotation_slot: Slot | None

    @property
    def name(self) -> str:
        """What the slots of this hand begin with."""
        return self.position.slot.removesuffix("_position")

    def read(self, native: Tensor) -> Pose:
        """The pose in ``native [..., N]``; a hand that never turns has the identity rotation.

        Raises:
            InputError: a quaternion that is not unit, naming the slot.
        """
        position = native[..., slice(*self.position.native)]
        if self.rotation is None or self.rotation.rotation is None:
            none = Rotation.identity(position.shape[:-1], native.dtype, native.device)
            return Pose(position, none)
        values = native[..., slice(*self.rotation.native)]
        what = f"slot {self.rotation.slot!r}"
        return Pose(position, Rotation.read(values, self.rotation.rotation, what=what))

    def write(self, pose: Pose, native: Tensor) -> None:
        """Puts a pose into its columns of ``native [..., N]``, and nothing else."""
        native[..., slice(*self.position.native)] = pose.position
        if self.rotation is not None and self.rotation.rotation is not None:
            turned = pose.rotation.write(self.rotation.rotation)
            native[..., slice(*self.rotation.native)] = turned

    def state_of(self, measured: Sequence["Hand"]) -> "Hand | None":
        """The same end-effector among those of a state."""
        return next((one for one in measured if one.name == self.name), None)

    def base_row(self, native: Tensor) -> Tensor:
        """``[..., 7]``: position [m] and quaternion w, x, y, z of the pose in ``native``."""
        pose = self.read(native)
        return torch.cat([pose.position, pose.rotation.write("quaternion_wxyz")], dim=-1)


def hands(fields: Sequence[Field], slots: SlotMap) -> tuple[Hand, ...]:
    """The end-effectors that ``fields`` hold: ``X_position`` with ``X_rotation``, if there is one.

    Every slot of kind ``position`` is one, whatever ``X`` is.
    """
    by_slot = {field.slot: field for field in fields}
    found = []
    for field in fields:
        slot = slots.slot(field.slot)
        if slot.kind != "position":
            continue
        twin = by_slot.get(slot.name.removesuffix("position") + "rotation")
        found.append(Hand(field, twin, slot, slots.slot(twin.slot) if twin else None))
    return tuple(found)
