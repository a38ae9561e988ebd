"""The definition of ``action_decode``: a normalised chunk into commands that a robot can take.

Every slot is denormalised, value = x·scale + offset. A copy moves one value to its column. A pose
turns the actions (p, R) of one end-effector into the absolute poses T_t = (p_t, R_t) that they
mean, the inverse of arXiv 2602.09722, Eq. 4. T_0 is the pose at the chunk's start, R maps hand
coordinates to the fixed frame:

    world_relative    p_t = p_0 + p            R_t = R·R_0
    world_delta       p_t = p_{t-1} + p        R_t = R·R_{t-1}
    eef_relative      p_t = p_0 + R_0·p        R_t = R_0·R
    eef_delta         p_t = p_{t-1} + R_{t-1}·p    R_t = R_{t-1}·R

Letters: B rows, H positions of the chunk, A slots, N columns, C copies, P poses.
"""

import math

import torch
from torch import Tensor

__all__ = ["FRAMES", "KINDS", "KIND_WIDTHS", "action_decode_reference", "compute_dtype"]

FRAMES = ("world_relative", "world_delta", "eef_relative", "eef_delta")
# A kind's code is its place here.
KINDS = ("axis_angle", "rotation_6d", "quaternion_xyzw", "quaternion_wxyz")
KIND_WIDTHS = (3, 6, 4, 4)

SHORTEST = 1e-6  # a shorter vector has no direction that its own rounding did not make
UNIT_TOLERANCE = 1e-3


def compute_dtype(x: Tensor) -> torch.dtype:
    """fp32, or fp64 for an fp64 chunk."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def action_decode_reference(
    x: Tensor,
    scale: Tensor,
    offset: Tensor,
    base: Tensor,
    copies: Tensor,
    affine: Tensor,
    poses: Tensor,
    frame: str,
    width: int,
) -> Tensor:
    """Returns ``out [B, H, N]`` in the compute dtype."""
    x = x.to(compute_dtype(x))
    value = x * scale + offset  # [B, H, A]
    out = torch.empty((*x.shape[:2], width), dtype=x.dtype, device=x.device)
    slots, columns, binary = copies.to(x.device).long().unbind(1)  # [C] each
    sign = torch.where(x > 0, 1.0, -1.0).to(x.dtype).where(~x.isnan(), x)
    taken = torch.where(binary.bool(), (sign * scale + offset)[..., slots], value[..., slots])
    out[..., columns] = taken * affine[:, 0] + affine[:, 1]
    for pose, (slot, turn_slot, kind, column, turn_column, kind_out) in enumerate(poses.tolist()):
        moves = value[..., slot : slot + 3]  # [B, H, 3]
        p_0 = base[:, pose, :3]  # [B, 3]
        if turn_slot < 0:
            out[..., column : column + 3] = _positions(p_0, moves, frame)
            continue
        turns = _matrix(value[..., turn_slot : turn_slot + KIND_WIDTHS[kind]], KINDS[kind])
        p, R = _poses(p_0, _base_matrix(base[:, pose, 3:]), moves, turns, frame)
        out[..., column : column + 3] = p
        out[..., turn_column : turn_column + KIND_WIDTHS[kind_out]] = _written(R, KINDS[kind_out])
    return out


def _positions(p_0: Tensor, moves: Tensor, frame: str) -> Tensor:
    """World frames of a position ``[B, H, 3]`` that has no rotation."""
    return p_0[:, None] + (moves.cumsum(1) if frame == "world_delta" else moves)


def _poses(
    p_0: Tensor, R_0: Tensor, moves: Tensor, turns: Tensor, frame: str
) -> tuple[Tensor, Tensor]:
    """Positions ``[B, H, 3]`` and rotations ``[B, H, 3, 3]``, formula by formula."""
    if frame == "world_relative":
        return p_0[:, None] + moves, turns @ R_0[:, None]
    if frame == "eef_relative":
        rotated = (R_0[:, None] @ moves[..., None])[..., 0]
        return p_0[:, None] + rotated, R_0[:, None] @ turns
    p, R = torch.empty_like(moves), torch.empty_like(turns)
    for t in range(moves.shape[1]):
        if frame == "world_delta":
            p_0, R_0 = p_0 + moves[:, t], turns[:, t] @ R_0
        else:
            p_0, R_0 = p_0 + (R_0 @ moves[:, t, :, None])[..., 0], R_0 @ turns[:, t]
        p[:, t], R[:, t] = p_0, R_0
    return p, R


def _unit(v: Tensor) -> Tensor:
    """``v / |v|``, NaN where there is no direction."""
    norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return torch.where((norm > SHORTEST) & norm.isfinite(), v / norm, math.nan)


def _base_matrix(wxyz: Tensor) -> Tensor:
    """R_0 ``[B, 3, 3]``; NaN for what is no unit quaternion."""
    norm = torch.linalg.vector_norm(wxyz, dim=-1)
    is_unit = (norm - 1).abs() <= UNIT_TOLERANCE
    return torch.where(is_unit[:, None, None], _matrix(wxyz, "quaternion_wxyz"), math.nan)


def _matrix(values: Tensor, kind: str) -> Tensor:
    """Rotation matrices ``[..., 3, 3]`` of a model's numbers, projected onto the rotations."""
    if kind == "axis_angle":
        return _rodrigues(values)
    if kind == "rotation_6d":
        return _gram_schmidt(values)
    q = _unit(values if kind == "quaternion_wxyz" else values.roll(1, -1))
    w, x, y, z = q.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _rodrigues(v: Tensor) -> Tensor:
    """exp of axis-angle [rad]: I + sin θ/θ·K + (1 - cos θ)/θ²·K², with K the cross product by v."""
    angle = torch.linalg.vector_norm(v, dim=-1)[..., None, None]
    x, y, z = v.unbind(-1)
    o = torch.zeros_like(x)
    K = torch.stack((o, -z, y, z, o, -x, -y, x, o), -1).unflatten(-1, (3, 3))
    half = torch.sinc(angle / (2 * math.pi))  # sin(θ/2) / (θ/2)
    eye = torch.eye(3, dtype=v.dtype, device=v.device)
    return eye + torch.sinc(angle / math.pi) * K + half**2 / 2 * (K @ K)


def _gram_schmidt(values: Tensor) -> Tensor:
    """The rotation whose first columns are nearest in turn (arXiv 1812.07035, Eq. 15)."""
    first, near = _unit(values[..., :3]), _unit(values[..., 3:])
    second = _unit(near - (first * near).sum(-1, keepdim=True) * first)
    R = torch.stack((first, second, torch.linalg.cross(first, second)), -1)
    return torch.where(second.isnan().any(-1)[..., None, None], math.nan, R)


def _written(R: Tensor, kind: str) -> Tensor:
    """Numbers of a rotation: angles in [0, π], quaternions with w ≥ 0."""
    if kind == "rotation_6d":
        return torch.cat((R[..., 0], R[..., 1]), -1)
    q = _quaternion(R)
    if kind == "quaternion_wxyz":
        return q
    if kind == "quaternion_xyzw":
        return q.roll(-1, -1)
    sine = torch.linalg.vector_norm(q[..., 1:], dim=-1, keepdim=True)
    angle = 2 * torch.atan2(sine, q[..., :1])
    return torch.where(sine == 0, 2.0, angle / sine) * q[..., 1:]


def _quaternion(R: Tensor) -> Tensor:
    """Order w, x, y, z, w ≥ 0: the longest row of 4·q·qᵀ, made a unit vector."""
    xx, yy, zz = R.diagonal(dim1=-2, dim2=-1).unbind(-1)
    x = R[..., 2, 1] - R[..., 1, 2]
    y = R[..., 0, 2] - R[..., 2, 0]
    z = R[..., 1, 0] - R[..., 0, 1]
    xy = R[..., 1, 0] + R[..., 0, 1]
    xz = R[..., 0, 2] + R[..., 2, 0]
    yz = R[..., 2, 1] + R[..., 1, 2]
    rows = (
        (1 + xx + yy + zz, x, y, z),
        (x, 1 + xx - yy - zz, xy, xz),
        (y, xy, 1 - xx + yy - zz, yz),
        (z, xz, yz, 1 - xx - yy + zz),
    )
    qq = torch.stack([torch.stack(row, -1) for row in rows], -2)  # [..., 4, 4]
    best = qq.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = qq.take_along_dim(best[..., None, None], -2)[..., 0, :]
    q = row / torch.linalg.vector_norm(row, dim=-1, keepdim=True)
    return torch.where(q[..., :1] < 0, -q, q)
