"""The four coordinate parametrisations of a chunk of end-effector poses (arXiv 2602.09722, Eq. 4).

A pose T = (p, R) is the end effector in a fixed frame ("world": whatever frame the poses are given
in, mostly the robot's base); R maps hand coordinates to that frame. T_0 is the pose at the chunk's
start, T_1 .. T_H are the targets; T_before is T_0 for the first step and T_{t-1} after it.

    frame            p of the action             R of the action       back: decode
    world_relative   p_t - p_0                   R_t R_0^T             R_t = R R_0
    world_delta      p_t - p_{t-1}               R_t R_{t-1}^T         R_t = R R_{t-1}
    eef_relative     R_0^T (p_t - p_0)           R_0^T R_t             R_t = R_0 R
    eef_delta        R_{t-1}^T (p_t - p_{t-1})   R_{t-1}^T R_t         R_t = R_{t-1} R

World: numbers along the fixed axes; the action's rotation multiplies from the left, and position
and rotation are separate (p is *not* the translation of T_t T_0^-1, which would be p_t - R p_0).
EEF: numbers along the hand's own axes; the action is T_before^-1 T_t on SE(3), the rotation
multiplies from the right. Under a change of the fixed frame T -> G T an EEF action stays the same,
a World action becomes p -> G_R p, R -> G_R R G_R^T.

Dimension letters: H chunk, D values, W width of a kind; ``...`` any batch shape. [m] and [rad].
"""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.space.rotation import WIDTH, Kind, Rotation

__all__ = ["FRAMES", "Frame", "Pose", "decode", "encode", "hold_last", "past_end"]

Frame = Literal["world_relative", "world_delta", "eef_relative", "eef_delta"]
FRAMES: tuple[Frame, ...] = get_args(Frame)


@dataclass(frozen=True, eq=False)
class Pose:
    """A batch of poses, or of actions, which are such pairs too.

    Attributes:
        position: ``[..., 3]`` [m].
        rotation: of the batch shape ``...`` and the position's dtype.

    Raises:
        InputError: a position and a rotation of different batch shapes or dtypes.
    """

    position: Tensor
    rotation: Rotation

    def __post_init__(self) -> None:
        expected = (*self.rotation.shape, 3)
        if tuple(self.position.shape) != expected or self.position.dtype != self.rotation.q.dtype:
            raise InputError(
                f"pose: a position {list(expected)} of {self.rotation.q.dtype} expected beside its "
                f"rotation, found {list(self.position.shape)} of {self.position.dtype}; "
                "give both the same batch shape and dtype"
            )

    @staticmethod
    def read(values: Tensor, kind: Kind, project: bool = False, what: str = "pose") -> "Pose":
        """Poses from ``values [..., 3 + W]``: position [m], then the rotation as ``kind``.

        ``project`` is for a model's output, see ``Rotation.read``.

        Raises:
            InputError: an unknown kind, another width, a value that is not finite, no rotation.
        """
        width = 3 + WIDTH.get(kind, 0)
        if kind in WIDTH and (values.ndim == 0 or values.shape[-1] != width):
            raise InputError(
                f"{what}: width {width} (position 3, {kind} {width - 3}) expected in the last "
                f"dimension, found shape {list(values.shape)}; give the kind that the values have"
            )
        rotation = Rotation.read(values[..., 3:], kind, project=project, what=what)
        position = values[..., :3]
        if not project and not bool(position.isfinite().all()):
            index = position.isfinite().logical_not().nonzero()[0].tolist()
            raise InputError(
                f"{what}: finite positions expected, found {position[tuple(index)].item()} at "
                f"index {index}; drop or repair that sample"
            )
        return Pose(position, rotation)

    def write(self, kind: Kind) -> Tensor:
        """``[..., 3 + W]``: position [m], then the rotation as ``kind`` (``Rotation.write``)."""
        return torch.cat((self.position, self.rotation.write(kind)), -1)

    def compose(self, other: "Pose") -> "Pose":
        """``a @ b`` on SE(3): (p_a + R_a p_b, R_a R_b)."""
        position = self.position + self.rotation.apply(other.position)
        return Pose(position, self.rotation.compose(other.rotation))

    __matmul__ = compose

    def inverse(self) -> "Pose":
        """T^-1 = (-R^T p, R^T)."""
        back = self.rotation.inverse()
        return Pose(-back.apply(self.position), back)

    @property
    def shape(self) -> torch.Size:
        """The batch shape."""
        return self.rotation.shape

    def __getitem__(self, index: Any) -> "Pose":
        """Indexing of the batch shape, as of a tensor."""
        index = index if isinstance(index, tuple) else (index,)
        rest = () if any(i is Ellipsis for i in index) else (Ellipsis,)
        return Pose(self.position[(*index, *rest, slice(None))], self.rotation[index])


def encode(poses: Pose, base: Pose, frame: Frame) -> Pose:
    """The actions ``[..., H]`` that say the targets ``poses [..., H]`` from ``base [...]``.

    The formulas are the module's table (arXiv 2602.09722, Eq. 4). Differentiable everywhere.

    Raises:
        InputError: an unknown frame, or a base of another batch shape than the chunk's.
    """
    _check(poses, base, frame)
    start = base[..., None]
    if frame.endswith("delta"):
        start = _before(poses, start)
    offset, back = poses.position - start.position, start.rotation.inverse()
    if frame.startswith("eef"):
        return Pose(back.apply(offset), back.compose(poses.rotation))
    return Pose(offset, poses.rotation.compose(back))


def decode(actions: Pose, base: Pose, frame: Frame) -> Pose:
    """The targets ``[..., H]`` that ``actions [..., H]`` say from ``base [...]``: encode's inverse.

    A delta chunk is summed up along H: R_t = A_t .. A_1 R_0 for world_delta, R_0 A_1 .. A_t for
    eef_delta.

    Raises:
        InputError: an unknown frame, or a base of another batch shape than the chunk's.
    """
    _check(actions, base, frame)
    start, turn, offset = base[..., None], actions.rotation, actions.position
    eef = frame.startswith("eef")
    if not frame.endswith("delta"):
        if eef:
            return start.compose(actions)
        return Pose(start.position + offset, turn.compose(start.rotation))
    turn = _running_product(turn, later_left=not eef)
    rotation = start.rotation.compose(turn) if eef else turn.compose(start.rotation)
    if eef:
        before = torch.cat((start.rotation.q, rotation.q[..., :-1, :]), -2)
        offset = Rotation(before).apply(offset)
    return Pose(start.position + offset.cumsum(-2), rotation)


def past_end(actions: Pose, valid: Tensor) -> Pose:
    """``actions [..., H]`` with the identity (p = 0, R = 1) at the steps after the episode's end.

    For actions of the four frames. The identity of a delta frame means "stay"; that of a relative
    frame means "the pose at the chunk's start", so mask those steps out of the loss, or give
    ``hold_last`` to the targets before ``encode`` where staying is meant.

    Args:
        valid: bool ``[..., H]``, True up to the episode's last step and False after it.

    Raises:
        InputError: a ``valid`` of another shape or dtype, or one that is not of that form.
    """
    _check_valid(valid, actions.shape)
    identity = Rotation.identity((), actions.rotation.q.dtype, actions.rotation.q.device).q
    keep = valid[..., None]
    position = torch.where(keep, actions.position, torch.zeros_like(actions.position))
    return Pose(position, Rotation(torch.where(keep, actions.rotation.q, identity)))


def hold_last(values: Tensor, valid: Tensor) -> Tensor:
    """``values [..., H, D]`` with the last valid row repeated after the episode's end.

    For absolute entries: grippers, joints, absolute poses.

    Args:
        valid: bool ``[..., H]``, True up to the episode's last step and False after it.

    Raises:
        InputError: a ``valid`` of another shape or dtype, or one that is not of that form.
    """
    _check_valid(valid, values.shape[:-1])
    steps = torch.arange(valid.shape[-1], device=valid.device)
    index = torch.minimum(steps, valid.sum(-1, keepdim=True) - 1)
    return values.gather(-2, index[..., None].expand(values.shape))


def _before(poses: Pose, start: Pose) -> Pose:
    """T_0, T_1, .. T_{H-1}."""
    position = torch.cat((start.position, poses.position[..., :-1, :]), -2)
    q = torch.cat((start.rotation.q, poses.rotation.q[..., :-1, :]), -2)
    return Pose(position, Rotation(q))


def _running_product(turns: Rotation, later_left: bool) -> Rotation:
    """A_1, A_2 A_1, A_3 A_2 A_1, .. (later_left) or A_1, A_1 A_2, ..; log2(H) doubling steps."""
    shift = 1
    while shift < turns.shape[-1]:
        early, late = turns[..., :-shift], turns[..., shift:]
        grown = late.compose(early) if later_left else early.compose(late)
        turns = Rotation(torch.cat((turns.q[..., :shift, :], grown.q), -2))
        shift *= 2
    return turns


def _check(chunk: Pose, base: Pose, frame: Frame) -> None:
    if frame not in FRAMES:
        raise InputError(
            f"frame: one of {', '.join(FRAMES)} expected, found {frame!r}; "
            "take the frame that the policy was trained in"
        )
    if not chunk.shape or chunk.shape[-1] == 0 or chunk.shape[:-1] != base.shape:
        raise InputError(
            f"base: batch shape {list(chunk.shape[:-1])} expected for a chunk {list(chunk.shape)} "
            f"(its last dimension is H, at least 1), found {list(base.shape)}; "
            "give one base pose per chunk"
        )


def _check_valid(valid: Tensor, shape: torch.Size) -> None:
    if valid.dtype != torch.bool or valid.shape != shape or not shape:
        raise InputError(
            f"valid: bool {list(shape)} expected, found {valid.dtype} {list(valid.shape)}; "
            "give one flag per step"
        )
    holds = valid[..., 0] & (valid[..., 1:] <= valid[..., :-1]).all(-1)
    if not bool(holds.all()):
        index = holds.logical_not().nonzero()[0].tolist()
        raise InputError(
            f"valid: True up to the episode's end and False after it expected, found "
            f"{valid[tuple(index)].tolist()} for chunk {index}; a padding mask must be inverted"
        )
