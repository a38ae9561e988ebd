"""Rotations, batched: unit quaternions inside, four named kinds of numbers at the border.

A rotation maps hand coordinates to those of a fixed frame: ``v_fixed = R v_hand``. Angles [rad].
Dimension letters: W width of a kind; ``...`` any batch shape.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from vlakern.errors import InputError

__all__ = ["WIDTH", "Kind", "Rotation"]

Kind = Literal["axis_angle", "rotation_6d", "quaternion_xyzw", "quaternion_wxyz"]
WIDTH: dict[Kind, int] = {
    "axis_angle": 3,
    "rotation_6d": 6,
    "quaternion_xyzw": 4,
    "quaternion_wxyz": 4,
}

TOLERANCE = 1e-3
# Below these squared arguments a series replaces a quotient whose gradient would cancel; the terms
# kept leave less than 1e-17 of the value.
EXP_SERIES_BELOW = 0.25
LOG_SERIES_BELOW = 0.01
COS = tuple((-1) ** n / math.factorial(2 * n) for n in range(9))
SINC = tuple((-1) ** n / math.factorial(2 * n + 1) for n in range(8))
ATAN = tuple((-1) ** n / (2 * n + 1) for n in range(9))
SHORTEST = 1e-6  # a shorter vector has no direction that its own rounding did not make


@dataclass(frozen=True, eq=False)
class Rotation:
    """A batch of rotations.

    Attributes:
        q: unit quaternions ``[..., 4]`` in the order w, x, y, z, float32 or float64; q and -q are
            one rotation. Build it with ``read``, ``from_matrix`` or ``identity``, which make the
            norm 1; the constructor checks the width and the dtype only.

    Every operation is differentiable without NaN, at angle 0 and at pi too. Where the rotation has
    no derivative (the jump of an axis-angle at pi, the tip of ``angle`` at 0) it is one-sided or 0.
    """

    q: Tensor

    def __post_init__(self) -> None:
        _check_width(self.q, 4, "quaternion", "build it with Rotation.read")

    @staticmethod
    def read(
        values: Tensor, kind: Kind, *, project: bool = False, what: str = "rotation"
    ) -> "Rotation":
        """The rotations that ``values [..., W]`` of this kind say.

        axis_angle: unit axis times angle [rad], any angle. rotation_6d: the first two columns of R,
        column after column. quaternion_*: the letters are the order.

        Args:
            project: False for measured or stored values, which must be rotations already (norms 1
                and a right angle, all within 1e-3) and finite. True for what a model puts out:
                normalised, 6-D by Gram-Schmidt (the first column keeps its direction), unchecked;
                what has no direction (shorter than 1e-6, or parallel columns) becomes NaN.
            what: how an error names these values.

        Raises:
            InputError: an unknown kind, another width or dtype, or values that are no rotation.
        """
        _check_width(values, _width(kind), f"{what}: {kind}", "give the kind that the values have")
        if not project:
            _check_values(values, kind, what)
        if kind == "axis_angle":
            return Rotation(_exp(values))
        if kind == "rotation_6d":
            return Rotation(_from_columns(*_gram_schmidt(values[..., :3], values[..., 3:])))
        q = torch.cat((values[..., 3:], values[..., :3]), -1) if kind.endswith("xyzw") else values
        return Rotation(_unit(q))

    @staticmethod
    def identity(
        shape: Sequence[int] = (),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> "Rotation":
        """The rotation by nothing, ``shape`` times."""
        return Rotation(torch.tensor([1.0, 0, 0, 0], dtype=dtype, device=device).repeat(*shape, 1))

    @staticmethod
    def from_matrix(matrix: Tensor, what: str = "rotation matrix") -> "Rotation":
        """The rotations with the matrices ``[..., 3, 3]``, stable at every angle.

        Raises:
            InputError: another shape or dtype, or a matrix that is not finite, orthonormal within
                1e-3 and right-handed.
        """
        if matrix.shape[-2:] != (3, 3):
            raise InputError(
                f"{what}: [..., 3, 3] expected, found {list(matrix.shape)}; "
                "give one 3 x 3 matrix per rotation"
            )
        _check_width(matrix, 3, what, "give one 3 x 3 matrix per rotation")
        x, y, z = matrix.unbind(-1)
        columns = torch.cat((x, y), -1)
        _check_values(columns, "rotation_6d", what)
        off = torch.linalg.vector_norm(torch.linalg.cross(x, y) - z, dim=-1)
        _refuse(
            ~(off <= 3 * TOLERANCE),
            off,
            what,
            "its third column equal to the cross product of the first two",
            "a distance of ",
            "give a right-handed orthonormal matrix",
        )
        return Rotation(_from_columns(*_gram_schmidt(x, y)))

    def matrix(self) -> Tensor:
        """R ``[..., 3, 3]`` with ``v_fixed = R v_hand``; its columns are the hand's axes."""
        return torch.stack(_columns(self.q), -1)

    def write(self, kind: Kind) -> Tensor:
        """Values ``[..., W]`` of this kind; an axis-angle has its angle in [0, pi], quaternions
        have w >= 0.

        Raises:
            InputError: an unknown kind.
        """
        _width(kind)
        if kind == "rotation_6d":
            return torch.cat(_columns(self.q)[:2], -1)
        q = _canonical(self.q)
        if kind == "axis_angle":
            return _log(q)
        return torch.cat((q[..., 1:], q[..., :1]), -1) if kind == "quaternion_xyzw" else q

    def compose(self, other: "Rotation") -> "Rotation":
        """``a @ b``: b first, then a; the matrix is ``a.matrix() @ b.matrix()``.

        Batch shapes broadcast.

        Raises:
            InputError: batch shapes that do not.
        """
        _check_broadcast(self.q, other.q, "two rotations to compose")
        return Rotation(_product(self.q, other.q))

    # torch.compile follows the named method; it refuses the operator on a class of ours.
    __matmul__ = compose

    def inverse(self) -> "Rotation":
        """The rotation back; its matrix is the transpose."""
        w, xyz = self.q.split((1, 3), -1)
        return Rotation(torch.cat((w, -xyz), -1))

    def apply(self, vectors: Tensor) -> Tensor:
        """R v of ``vectors [..., 3]``, in the unit of the vectors; batch shapes broadcast.

        Raises:
            InputError: vectors of another width or dtype, or batch shapes that do not broadcast.
        """
        _check_width(vectors, 3, "vectors to rotate", "give x, y, z in the last dimension")
        _check_broadcast(self.q, vectors, "rotations and vectors to rotate")
        w, u = self.q.split((1, 3), -1)
        u, vectors = torch.broadcast_tensors(u, vectors)
        # R v = v + 2 w (u x v) + 2 u x (u x v), the product q v q* written out for a unit q.
        twice = 2.0 * torch.linalg.cross(u, vectors)
        return vectors + w * twice + torch.linalg.cross(u, twice)

    def angle(self) -> Tensor:
        """The geodesic distance from the identity ``[...]``, in [0, pi] [rad]."""
        sine = torch.linalg.vector_norm(self.q[..., 1:], dim=-1)
        return 2.0 * torch.atan2(sine, self.q[..., 0].abs())

    @property
    def shape(self) -> torch.Size:
        """The batch shape."""
        return self.q.shape[:-1]

    def __getitem__(self, index: Any) -> "Rotation":
        """Indexing of the batch shape, as of a tensor."""
        index = index if isinstance(index, tuple) else (index,)
        rest = () if any(i is Ellipsis for i in index) else (Ellipsis,)
        return Rotation(self.q[(*index, *rest, slice(None))])


def _width(kind: Kind) -> int:
    if not isinstance(kind, str) or kind not in WIDTH:
        raise InputError(
            f"rotation kind: one of {', '.join(WIDTH)} expected, found {kind!r}; "
            "say which numbers the values are"
        )
    return WIDTH[kind]


def _check_broadcast(a: Tensor, b: Tensor, what: str) -> None:
    pairs = zip(reversed(a.shape[:-1]), reversed(b.shape[:-1]), strict=False)
    if not all(left == right or left == 1 or right == 1 for left, right in pairs):
        raise InputError(
            f"{what}: batch shapes that broadcast expected, found {list(a.shape[:-1])} and "
            f"{list(b.shape[:-1])}; give both the same batch shape"
        )


def _check_width(values: Tensor, width: int, what: str, remedy: str) -> None:
    if not isinstance(values, Tensor):
        raise InputError(f"{what}: a tensor expected, found a {type(values).__name__}; {remedy}")
    if values.ndim == 0 or values.shape[-1] != width:
        raise InputError(
            f"{what}: width {width} expected in the last dimension, found shape "
            f"{list(values.shape)}; {remedy}"
        )
    if values.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"{what}: float32 or float64 expected, found {values.dtype}; convert the values first"
        )


def _refuse(bad: Tensor, found: Tensor, what: str, expected: str, noun: str, remedy: str) -> None:
    """One sentence about the first of the ``bad [...]``, if there is one."""
    if not bool(bad.any()):
        return
    index = tuple(bad.nonzero()[0].tolist())
    where = f" at index {list(index)}" if index else ""
    raise InputError(
        f"{what}: {expected} expected{where}, found {noun}{found[index].item():.6g}; {remedy}"
    )


def _check_values(values: Tensor, kind: Kind, what: str) -> None:
    values = values.detach()
    finite = values.isfinite().all(-1)
    first_bad = values.gather(-1, values.isfinite().int().argmin(-1, keepdim=True))[..., 0]
    _refuse(~finite, first_bad, what, "finite values", "", "drop or repair that sample")
    within = f"within {TOLERANCE:g}"
    if kind == "axis_angle":
        norm = (values * values).sum(-1)
        many = "an angle that can be squared", "a squared angle of ", "give radians"
        return _refuse(~norm.isfinite(), norm, what, *many)
    if kind != "rotation_6d":
        norm = torch.linalg.vector_norm(values, dim=-1)
        remedy = "check that these are the quaternion's columns, or read a model's with project"
        unit = f"a unit quaternion (norm 1 {within})", "norm ", remedy
        return _refuse((norm - 1).abs() > TOLERANCE, norm, what, *unit)
    remedy = "check that these are R's first two columns one after the other, not rows"
    for name, column in (("first", values[..., :3]), ("second", values[..., 3:])):
        norm = torch.linalg.vector_norm(column, dim=-1)
        unit = f"a {name} column of norm 1 ({within})", "norm ", remedy
        _refuse((norm - 1).abs() > TOLERANCE, norm, what, *unit)
    dot = (values[..., :3] * values[..., 3:]).sum(-1)
    _refuse(dot.abs() > TOLERANCE, dot, what, f"orthogonal columns ({within})", "product ", remedy)


def _unit(v: Tensor) -> Tensor:
    """v / |v|, NaN where there is no direction."""
    norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return torch.where((norm > SHORTEST) & norm.isfinite(), v / norm, math.nan)


def _canonical(q: Tensor) -> Tensor:
    return torch.where(q[..., :1] < 0, -q, q)


def _series(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """c_0 + c_1 x + c_2 x^2 + ... by Horner's rule."""
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * x + c
    return total


def _exp(v: Tensor) -> Tensor:
    """q = (cos(t/2), sin(t/2) v/t) with t = |v|, as functions of (t/2)^2, which is smooth at 0."""
    x = 0.25 * (v * v).sum(-1, keepdim=True)
    small = x < EXP_SERIES_BELOW
    # The branch not taken gets an argument at which its gradient is finite.
    h = torch.where(small, torch.ones_like(x), x).sqrt()
    x = torch.where(small, x, torch.zeros_like(x))
    cos = torch.where(small, _series(x, COS), h.cos())
    sinc = torch.where(small, _series(x, SINC), h.sin() / h)
    return torch.cat((cos, 0.5 * sinc * v), -1)


def _log(q: Tensor) -> Tensor:
    """v = 2 atan2(s, w) u / s with q = (w, u), s = |u|, w >= 0; a series in (s/w)^2 near s = 0.

    atan2 keeps all digits at pi (w = 0), where acos(w) would lose half of them, and the result does
    not change with |q|, so neither rounding of the norm nor its gradient enters.
    """
    w, u = q.split((1, 3), -1)
    s2 = (u * u).sum(-1, keepdim=True)
    small = s2 < LOG_SERIES_BELOW * w * w
    one = torch.ones_like(w)
    w_small = torch.where(small, w, one)
    series = _series(torch.where(small, s2, 0 * one) / (w_small * w_small), ATAN) / w_small
    s = torch.where(small, one, s2).sqrt()
    return 2.0 * u * torch.where(small, series, torch.atan2(s, w) / s)


def _product(a: Tensor, b: Tensor) -> Tensor:
    aw, ax, ay, az = a.unbind(-1)
    bw, bx, by, bz = b.unbind(-1)
    q = torch.stack(
        (
            aw * bw - ax * bx - ay * by - az * bz,
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
        ),
        -1,
    )
    # One Newton step to norm 1: a long chain of products must not drift.
    return q * (1.5 - 0.5 * (q * q).sum(-1, keepdim=True))


def _columns(q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The columns of R(q): 1 - 2 (y^2 + z^2) on the diagonal, 2 (x y -+ w z) beside it."""
    w, x, y, z = q.unbind(-1)
    return (
        torch.stack((1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)), -1),
        torch.stack((2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)), -1),
        torch.stack((2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)), -1),
    )


def _gram_schmidt(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Orthonormal x, y, z with x along a, y in the plane of a and b, z = x x y."""
    x, y = _unit(a), _unit(b)
    # Twice: where a and b are nearly parallel, what is left of b after one pass still leans on x.
    for _ in range(2):
        y = _unit(y - (x * y).sum(-1, keepdim=True) * x)
    return x, y, torch.linalg.cross(x, y)


def _from_columns(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """The row with the largest diagonal of 4 q q^T, normalised: it is at least 1 long, so there is
    neither a cancellation nor a root of 0 at any angle."""
    r00, r10, r20 = x.unbind(-1)
    r01, r11, r21 = y.unbind(-1)
    r02, r12, r22 = z.unbind(-1)
    wx, wy, wz = r21 - r12, r02 - r20, r10 - r01
    xy, xz, yz = r01 + r10, r02 + r20, r12 + r21
    rows = (
        (1 + r00 + r11 + r22, wx, wy, wz),
        (wx, 1 + r00 - r11 - r22, xy, xz),
        (wy, xy, 1 - r00 + r11 - r22, yz),
        (wz, xz, yz, 1 - r00 - r11 + r22),
    )
    four_qq = torch.stack([torch.stack(row, -1) for row in rows], -2)
    largest = four_qq.detach().diagonal(dim1=-2, dim2=-1).argmax(-1)
    index = largest[..., None, None].expand(*largest.shape, 1, 4)
    return _unit(four_qq.gather(-2, index)[..., 0, :])
