"""The fused decoding of chunks, bound once for a batch size and used again on the same memory."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops.action_decode import BoundDecode
from vlakern.space.hands import Hand
from vlakern.space.slots import SlotMap

__all__ = ["Decoder", "Decoders", "base_rows", "check_switches"]

# A rollout works off a few batch sizes in turn; more than these are forgotten.
MOST_IDLE = 8
# Narrower than that of Rotation.read, so that rounding cannot let a bad one through here.
UNIT_TOLERANCE = 9e-4


def check_switches(x_BHW: Tensor, two_valued: np.ndarray, slots: SlotMap) -> None:
    """Refuses what would be lost: decoded, a NaN or an infinity is one of a switch's two values.

    Raises:
        InputError: naming the slot.
    """
    for index in two_valued.tolist():
        if not x_BHW[..., index].isfinite().all():
            raise InputError(
                f"predicted action slot {slots.names()[index]!r} is not finite; check the model"
            )


class Decoder:
    """Buffers of one batch size and the native call on them."""

    def __init__(
        self, rows: int, chunk: int, slots: int, columns: int, bases: Sequence[Hand]
    ) -> None:
        self._bases = tuple(bases)
        # Tensors that are born in inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            self.x = torch.zeros(rows, chunk, slots)
            self.base = torch.zeros(rows, len(self._bases), 7)
            self.base[..., 3] = 1.0
            self.out = torch.zeros(rows, chunk, columns)
        self.run: BoundDecode | None = None

    def __call__(self, x: Tensor, state: np.ndarray) -> np.ndarray:
        """Commands ``[B, H, N]`` of chunks ``[B, H, W]`` and checked states ``[B, S]``: a copy."""
        self.x.copy_(x)
        base_rows(self._bases, state, self.base.numpy())
        assert self.run is not None
        self.run()
        return self.out.numpy().copy()


class Decoders:
    """Decoders that wait for their batch size; a thread takes one and gives it back."""

    def __init__(self, make: Callable[[int, int], Decoder]) -> None:
        self._make = make
        self._idle: dict[tuple[int, int], Decoder] = {}

    def __call__(self, x: Tensor, state: np.ndarray) -> np.ndarray:
        """As :class:`Decoder`, for any batch size."""
        size = (x.shape[0], x.shape[1])
        # Taken out while in use: another thread makes its own.
        decoder = self._idle.pop(size, None) or self._make(*size)
        try:
            return decoder(x, state)
        finally:
            if len(self._idle) >= MOST_IDLE:
                self._idle.clear()
            self._idle[size] = decoder


def base_rows(bases: Sequence[Hand], state: np.ndarray, out: np.ndarray) -> None:
    """Writes position and quaternion w, x, y, z of each hand in ``[B, S]`` to ``out [B, P, 7]``.

    Raises:
        InputError: a rotation that is none, naming the slot.
    """
    for i, hand in enumerate(bases):
        if not _written(hand, state, out[:, i]):
            out[:, i] = hand.base_row(torch.from_numpy(state)).numpy()


def _written(hand: Hand, state: np.ndarray, out: np.ndarray) -> bool:
    """Fills ``out [B, 7]`` without torch, which would take 200 us a call; False if it cannot."""
    turn = hand.rotation
    if turn is None or turn.rotation == "rotation_6d":
        return False
    values = state[:, turn.native[0] : turn.native[1]]
    length = np.sqrt(np.einsum("bi,bi->b", values, values))[:, None]
    if turn.rotation == "axis_angle":
        # sin(angle / 2) / angle tends to 1/2, and at 0 the axis is 0 whatever the factor.
        moving = np.where(length == 0.0, 1.0, length)
        out[:, 3] = np.cos(length[:, 0] / 2)
        out[:, 4:] = values * (np.sin(length / 2) / moving)
    # Written so that NaN is not good; what is not is refused with its reason elsewhere.
    elif not (np.abs(length - 1.0) < UNIT_TOLERANCE).all():
        return False
    elif turn.rotation == "quaternion_wxyz":
        out[:, 3:] = values / length
    else:
        out[:, 3], out[:, 4:] = values[:, 3] / length[:, 0], values[:, :3] / length
    out[:, :3] = state[:, hand.position.native[0] : hand.position.native[1]]
    return True
