"""Rotations against scipy, against numbers worked out by hand, and against finite differences."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation as Scipy

from vlakern.errors import InputError
from vlakern.space.rotation import WIDTH, Kind, Rotation
from vlakern.testing import generator

KINDS = tuple(WIDTH)
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
AXIS = torch.tensor([2.0, -3.0, 6.0], dtype=torch.float64) / 7.0
# Angles [rad] at which formulas for rotations break.
HARD = (0.0, 1e-12, 1e-6, 1e-3, 0.199, 0.201, 0.999, 1.001, 2.0, math.pi - 1e-3, math.pi - 1e-6)
HALF = math.sqrt(0.5)


def turns(dtype: torch.dtype, count: int = 600) -> torch.Tensor:
    """Axis-angles ``[3 * count, 3]`` of random axes: angles in [0, pi], near 0 and near pi."""
    g = generator("turns")
    axes = torch.nn.functional.normalize(
        torch.randn(3 * count, 3, generator=g, dtype=torch.float64)
    )
    tiny = 10.0 ** (-8 * torch.rand(count, generator=g, dtype=torch.float64))
    middle = math.pi * torch.rand(count, generator=g, dtype=torch.float64)
    angles = torch.cat((tiny, middle, math.pi - tiny.clamp(min=1e-5)))
    return (axes * angles[:, None]).to(dtype)


def by_scipy(values: np.ndarray, kind: Kind) -> Scipy:
    """What scipy makes of the same numbers, in fp64."""
    values = values.astype(np.float64)
    if kind == "axis_angle":
        return Scipy.from_rotvec(values)
    if kind == "rotation_6d":
        x, y = values[:, :3], values[:, 3:]
        return Scipy.from_matrix(np.stack((x, y, np.cross(x, y)), -1))
    return Scipy.from_quat(np.roll(values, -1, -1) if kind == "quaternion_wxyz" else values)


def from_scipy(rotation: Scipy, kind: Kind) -> np.ndarray:
    """Scipy's numbers of this kind."""
    if kind == "axis_angle":
        return rotation.as_rotvec()
    if kind == "rotation_6d":
        matrix = rotation.as_matrix()
        return np.concatenate((matrix[..., 0], matrix[..., 1]), -1)
    xyzw = rotation.as_quat(canonical=True)
    return np.roll(xyzw, 1, -1) if kind == "quaternion_wxyz" else xyzw


def near(found: torch.Tensor, expected: np.ndarray, tolerance: float) -> None:
    """Equal within an absolute tolerance."""
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=tolerance)


@EACH_KIND
@DTYPES
def test_reading_agrees_with_scipy(kind: Kind, dtype: torch.dtype) -> None:
    """The matrix of the same numbers, near 0 and pi too."""
    values = torch.tensor(from_scipy(Scipy.from_rotvec(turns(dtype).numpy()), kind)).to(dtype)
    found = Rotation.read(values, kind).matrix()
    near(found, by_scipy(values.numpy(), kind).as_matrix(), TOLERANCE[dtype])


@EACH_KIND
@DTYPES
def test_writing_agrees_with_scipy(kind: Kind, dtype: torch.dtype) -> None:
    """The numbers of the same rotation, near 0 and pi too."""
    values = turns(dtype)
    found = Rotation.read(values, "axis_angle").write(kind)
    near(found, from_scipy(by_scipy(values.numpy(), "axis_angle"), kind), TOLERANCE[dtype])


@DTYPES
def test_small_axis_angles_keep_their_relative_accuracy(dtype: torch.dtype) -> None:
    """Down to 1e-12 rad a written axis-angle is the read one to a few units in the last place."""
    for angle in (1e-12, 1e-8, 1e-4, 0.1, 1.0, 3.0):
        values = (AXIS * angle).to(dtype)
        found = Rotation.read(values, "axis_angle").write("axis_angle")
        torch.testing.assert_close(found, values, rtol=8 * torch.finfo(dtype).eps, atol=0)


@DTYPES
def test_matrices_agree_with_scipy(dtype: torch.dtype) -> None:
    """from_matrix gives the rotation whose matrix it was, whichever component is the largest."""
    matrix = Scipy.from_rotvec(turns(dtype).numpy()).as_matrix()
    found = Rotation.from_matrix(torch.tensor(matrix).to(dtype))
    near(found.matrix(), matrix, TOLERANCE[dtype])
    assert torch.equal(
        Rotation.from_matrix(torch.eye(3, dtype=dtype)).matrix(), torch.eye(3, dtype=dtype)
    )


@DTYPES
def test_half_turns_about_each_axis_survive(dtype: torch.dtype) -> None:
    """At exactly pi, w = 0, every way in and out gives the same matrix."""
    for signs in ((1, -1, -1), (-1, 1, -1), (-1, -1, 1)):
        matrix = torch.diag(torch.tensor(signs, dtype=dtype))
        half = Rotation.from_matrix(matrix)
        assert half.angle().item() == pytest.approx(math.pi, abs=1e-6)
        for kind in KINDS:
            again = Rotation.read(half.write(kind), kind).matrix()
            torch.testing.assert_close(again, matrix, rtol=0, atol=TOLERANCE[dtype])


@DTYPES
def test_products_inverses_and_angles_agree_with_scipy(dtype: torch.dtype) -> None:
    """a @ b is b first; inverse, apply and the geodesic angle likewise."""
    values = turns(dtype)
    shuffled = values[torch.randperm(len(values), generator=generator("order"))]
    vectors = torch.randn(len(values), 3, generator=generator("vectors"), dtype=dtype)
    a, b = (Rotation.read(v, "axis_angle") for v in (values, shuffled))
    scipy_a, scipy_b = (by_scipy(v.numpy(), "axis_angle") for v in (values, shuffled))
    vectors = torch.nn.functional.normalize(vectors)
    tolerance = TOLERANCE[dtype]
    near((a @ b).matrix(), (scipy_a * scipy_b).as_matrix(), tolerance)
    near(a.compose(b).matrix(), (scipy_a * scipy_b).as_matrix(), tolerance)
    near(a.inverse().matrix(), scipy_a.inv().as_matrix(), tolerance)
    near(a.apply(vectors), scipy_a.apply(vectors.double().numpy()), tolerance)
    near((a @ b).angle(), (scipy_a * scipy_b).magnitude(), tolerance)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("axis_angle", (0, 0, math.pi / 2)),
        ("rotation_6d", (0, 1, 0, -1, 0, 0)),
        ("quaternion_xyzw", (0, 0, HALF, HALF)),
        ("quaternion_wxyz", (HALF, 0, 0, HALF)),
    ],
)
def test_a_quarter_turn_about_z_by_hand(kind: Kind, values: tuple[float, ...]) -> None:
    """x goes to y and y to -x; the first column of R is where x goes."""
    numbers = torch.tensor(values, dtype=torch.float64)
    turn = Rotation.read(numbers, kind)
    near(turn.matrix(), np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]]), 1e-15)
    near(turn.apply(torch.tensor([1.0, 2, 3]).double()), np.array([-2.0, 1, 3]), 1e-15)
    near(turn.write(kind), numbers.numpy(), 1e-15)


def test_the_order_of_a_product_by_hand() -> None:
    """Quarter turns, z first and then x: x goes to y, then to z; the other order leaves it at y."""
    x, z = (Rotation.read(torch.eye(3)[i] * math.pi / 2, "axis_angle") for i in (0, 2))
    torch.testing.assert_close((x @ z).apply(torch.eye(3)[0]), torch.eye(3)[2])
    torch.testing.assert_close((z @ x).apply(torch.eye(3)[0]), torch.eye(3)[1])


VECTORS = st.tuples(*[st.floats(-1, 1)] * 3).map(torch.DoubleTensor)
ANGLES = st.one_of(st.sampled_from(HARD), st.floats(0, math.pi - 1e-6))


@given(axis=VECTORS, angle=ANGLES, kind=st.sampled_from(KINDS), flip=st.booleans())
def test_every_kind_says_the_same_rotation(
    axis: torch.Tensor, angle: float, kind: Kind, flip: bool
) -> None:
    """Out and in again in any kind, from q and from -q: the matrix stays, norms and signs hold."""
    axis = torch.nn.functional.normalize(axis, dim=0) if axis.norm() > 1e-3 else AXIS
    turn = Rotation.read(axis * angle, "axis_angle")
    written = (Rotation(-turn.q) if flip else turn).write(kind)
    again = Rotation.read(written, kind)
    torch.testing.assert_close(again.matrix(), turn.matrix(), rtol=0, atol=1e-14)
    assert again.angle().item() == pytest.approx(angle, abs=1e-14 + 4e-16 / max(angle, 1e-3))
    if kind == "axis_angle":
        torch.testing.assert_close(written, axis * angle, rtol=0, atol=1e-14)
    if kind.startswith("quaternion"):
        assert written[3 if kind.endswith("xyzw") else 0] >= 0
        assert written.norm().item() == pytest.approx(1.0, abs=1e-15)


@given(axis=VECTORS, angle=st.floats(-30, 30))
def test_written_angles_are_geodesic(axis: torch.Tensor, angle: float) -> None:
    """However far it was turned, angle() and a written axis-angle are the shortest way back."""
    axis = torch.nn.functional.normalize(axis, dim=0) if axis.norm() > 1e-3 else AXIS
    turn = Rotation.read(axis * angle, "axis_angle")
    expected = abs(math.remainder(angle, 2 * math.pi))
    assert turn.angle().item() == pytest.approx(expected, abs=1e-13)
    assert turn.write("axis_angle").norm().item() == pytest.approx(expected, abs=1e-13)
    assert 0.0 <= turn.angle().item() <= math.pi


def test_a_long_chain_does_not_drift() -> None:
    """20,000 products in fp32 leave the norm 1 within 1e-6."""
    step = turn = Rotation.read(AXIS.float() * 0.3, "axis_angle")
    for _ in range(20_000):
        turn = step @ turn
    assert turn.q.double().norm().item() == pytest.approx(1.0, abs=1e-6)


@EACH_KIND
@pytest.mark.parametrize("angle", HARD)
def test_gradients_of_reading_are_those_of_finite_differences(kind: Kind, angle: float) -> None:
    """At 0, at the borders of the series and near pi, in fp64."""
    values = Rotation.read(AXIS * angle, "axis_angle").write(kind).requires_grad_()

    def matrix(v: torch.Tensor) -> torch.Tensor:
        return Rotation.read(v, kind).matrix()

    assert torch.autograd.gradcheck(matrix, values, eps=1e-6, atol=1e-8)
    torch.testing.assert_close(
        Rotation.read(1.5 * values, kind, project=True).matrix(),
        matrix(1.5 * values if kind == "axis_angle" else values),
    )


@EACH_KIND
@pytest.mark.parametrize("angle", HARD)
def test_gradients_of_writing_are_those_of_finite_differences(kind: Kind, angle: float) -> None:
    """As a function of a small turn beside the rotation, and of its matrix's columns."""
    turn = Rotation.read(AXIS * angle, "axis_angle")
    columns = turn.write("rotation_6d").requires_grad_()

    def beside(v: torch.Tensor) -> torch.Tensor:
        return (Rotation.read(v, "axis_angle") @ turn).write(kind)

    def of_columns(v: torch.Tensor) -> torch.Tensor:
        return Rotation.read(v, "rotation_6d").write(kind)

    # A step of 1e-7 stays on this side of pi.
    still = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(beside, still, eps=1e-7, atol=1e-7)
    assert torch.autograd.gradcheck(of_columns, columns, eps=1e-7, atol=1e-7)


@pytest.mark.parametrize("angle", HARD[2:])
def test_gradients_of_angle_product_and_apply_are_those_of_finite_differences(
    angle: float,
) -> None:
    """The angle has no derivative at 0 itself: it starts beside it, with a still smaller step."""
    v = (AXIS * angle).requires_grad_()
    w = torch.tensor([0.3, 0.2, -0.4], dtype=torch.float64, requires_grad=True)

    def angle_of(v: torch.Tensor) -> torch.Tensor:
        return Rotation.read(v, "axis_angle").angle()

    def applied(v: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        a, b = Rotation.read(v, "axis_angle"), Rotation.read(w, "axis_angle")
        return (a @ b.inverse()).apply(w)

    assert torch.autograd.gradcheck(angle_of, v, eps=1e-9, atol=1e-5)
    assert torch.autograd.gradcheck(applied, (v, w), eps=1e-6, atol=1e-8)


@EACH_KIND
@pytest.mark.parametrize("angle", HARD)
def test_fp32_gradients_are_those_of_fp64(kind: Kind, angle: float) -> None:
    """Reading and writing, within 1e-5 of the same graph in fp64 at the same numbers."""
    numbers = Rotation.read(AXIS * angle, "axis_angle").write(kind).float()

    def through(out: Kind) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda v: Rotation.read(v, kind).write(out)

    for out in KINDS:
        single, double = (
            torch.autograd.functional.jacobian(through(out), n) for n in (numbers, numbers.double())
        )
        scale = float(double.abs().max())
        torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5 * scale)


@DTYPES
def test_gradients_are_finite_at_zero_and_at_pi(dtype: torch.dtype) -> None:
    """Exactly there, for every way in and out; at 0 axis-angle to axis-angle is the identity."""
    for matrix in (torch.eye(3), torch.diag(torch.tensor([-1.0, 1.0, -1.0]))):
        for kind in KINDS:
            turn = Rotation.from_matrix(matrix.to(dtype)).write(kind).requires_grad_()
            rotation = Rotation.read(turn, kind)
            written = [rotation.write(out).sum() for out in KINDS]
            again = Rotation.from_matrix(rotation.matrix()).write("axis_angle").sum()
            (gradient,) = torch.autograd.grad(sum(written) + again + rotation.angle(), turn)
            assert gradient.isfinite().all(), (matrix, kind)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: Rotation.read(v, "axis_angle").write("axis_angle"), torch.zeros(3, dtype=dtype)
    )
    assert torch.equal(jacobian, torch.eye(3, dtype=dtype))


def test_projection_is_gram_schmidt_and_normalisation() -> None:
    """The first column keeps its direction, the second its half-plane; quaternions any length."""
    values = torch.tensor([0.0, 3, 0, 5, -7, 0], dtype=torch.float64)
    turn = Rotation.read(values, "rotation_6d", project=True)
    near(turn.matrix(), np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, -1]]), 1e-15)
    lean = torch.tensor([1.0, 2, 3, 1, 2, 3.001])
    first = Rotation.read(lean, "rotation_6d", project=True).write("rotation_6d")[:3]
    torch.testing.assert_close(first, lean[:3] / lean[:3].norm(), rtol=0, atol=1e-6)
    for length in (1e-3, 40.0):
        q = Rotation.read(torch.tensor([length, 0, 0, length]), "quaternion_wxyz", project=True)
        torch.testing.assert_close(q.q, torch.tensor([HALF, 0, 0, HALF]))


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("quaternion_wxyz", (0, 0, 0, 0)),
        ("quaternion_xyzw", (0, 0, math.inf, 0)),
        ("rotation_6d", (0, 0, 0, 0, 1, 0)),
        ("rotation_6d", (0.3, 0.1, 0.2, -0.9, -0.3, -0.6)),
        ("axis_angle", (0, math.nan, 0)),
    ],
)
def test_a_projection_without_direction_is_nan(kind: Kind, values: tuple[float, ...]) -> None:
    """Never a guess, and only in its own row."""
    rows = torch.tensor(values, dtype=torch.float32).repeat(2, 1)
    rows[1] = Rotation.identity().write(kind)
    matrix = Rotation.read(rows, kind, project=True).matrix()
    assert matrix[0].isnan().any()
    assert torch.equal(matrix[1], torch.eye(3))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("quaternion_wxyz", (1.0, 0.1, 0, 0), r"wrist: a unit quaternion .*\[1\].*norm 1\.00499"),
        ("quaternion_xyzw", (0.0, 0, 0, 0.9), r"wrist: a unit quaternion .*norm 0\.9; check"),
        ("quaternion_xyzw", (0.0, 0, 0), r"wrist: quaternion_xyzw: width 4 .*shape \[2, 3\]"),
        ("axis_angle", (0.0, 0, 0, 1), r"wrist: axis_angle: width 3 .*shape \[2, 4\]"),
        ("axis_angle", (0.0, math.nan, 0), r"wrist: finite values .*\[1\], found nan; drop"),
        ("quaternion_wxyz", (1.0, -math.inf, 0, 0), r"wrist: finite values .*found -inf"),
        ("axis_angle", (0.0, 1e30, 0), r"wrist: an angle that can be squared .*radians"),
        ("rotation_6d", (1.0, 0, 0, 1, 0, 0), r"wrist: orthogonal columns .*product 1; check"),
        ("rotation_6d", (1.0, 0, 0, 0, 2, 0), r"a second column of norm 1 .*found norm 2"),
        ("rotation_6d", (0.0, 0, 0, 0, 1, 0), r"a first column of norm 1 .*found norm 0"),
        ("euler", (0.0, 0, 0), r"rotation kind: one of axis_angle, .* found 'euler'; say"),
    ],
)
def test_values_that_are_no_rotation_are_refused(
    kind: Kind, values: tuple[float, ...], message: str
) -> None:
    """One sentence: whose, what was expected, where, what was found and what to do."""
    rows = torch.tensor(values).repeat(2, 1)
    if rows.shape[1] == WIDTH.get(kind):
        rows[0] = Rotation.identity().write(kind)
    with pytest.raises(InputError, match=message) as caught:
        Rotation.read(rows, kind, what="wrist")
    assert "\n" not in str(caught.value)


def test_small_errors_of_stored_values_are_made_good() -> None:
    """Within 1e-3 values are taken and come out as exact rotations."""
    q = Rotation.read(torch.tensor([0.0, 0, 0, 1.0009]), "quaternion_xyzw")
    assert torch.equal(q.q, torch.tensor([1.0, 0, 0, 0]))
    turn = Rotation.read(torch.tensor([1.0, 0, 0, 9e-4, 1, 0]), "rotation_6d")
    torch.testing.assert_close(turn.matrix(), torch.eye(3))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.diag(torch.tensor([1.0, 1, -1])), r"site: its third column .*distance of 2"),
        (2 * torch.eye(3), r"site: a first column of norm 1"),
        (torch.eye(3) * math.nan, r"site: finite values"),
        (torch.eye(4), r"site: \[\.\.\., 3, 3\] expected, found \[4, 4\]"),
        (torch.eye(3).half(), r"site: float32 or float64 expected, found torch.float16"),
    ],
)
def test_matrices_that_are_no_rotation_are_refused(matrix: torch.Tensor, message: str) -> None:
    """A mirror image, a scale, NaN, a pose matrix, half precision."""
    with pytest.raises(InputError, match=message):
        Rotation.from_matrix(matrix, what="site")


def test_other_dtypes_and_widths_are_refused() -> None:
    """Half precision cannot hold a unit quaternion; vectors have three components."""
    with pytest.raises(InputError, match=r"float32 or float64 expected, found torch\.bf"):
        Rotation.read(torch.zeros(3).bfloat16(), "axis_angle", project=True)
    with pytest.raises(InputError, match=r"quaternion: width 4 .*build it with Rotation.read"):
        Rotation(torch.zeros(3))
    with pytest.raises(InputError, match="vectors to rotate: width 3"):
        Rotation.identity().apply(torch.zeros(4))
    with pytest.raises(InputError, match=r"rotation kind: .* found 'matrix'"):
        Rotation.identity().write("matrix")  # pyright: ignore[reportArgumentType]


def test_batch_shapes_and_indexing_are_a_tensors() -> None:
    """Indices reach the batch and never the quaternion; batches broadcast."""
    turn = Rotation.read(turns(torch.float32)[:24].reshape(2, 3, 4, 3), "axis_angle")
    assert turn.shape == (2, 3, 4)
    mask = torch.rand(2, 3, 4, generator=generator("mask")) > 0.5
    for index in (0, (1, 2), (..., 0), (slice(None), None), mask, (0, ..., slice(1, 3))):
        numbers = torch.arange(24).reshape(2, 3, 4)[index]
        assert torch.equal(turn[index].q, turn.q.reshape(24, 4)[numbers])
    with pytest.raises(IndexError):
        turn[0, 0, 0, 0]
    assert (turn[:, :, :1] @ turn).shape == (2, 3, 4)
    assert turn[0].apply(torch.zeros(3)).shape == (3, 4, 3)
    none = Rotation.identity((2, 3), torch.float64)
    assert torch.equal(none.matrix(), torch.eye(3, dtype=torch.float64).expand(2, 3, 3, 3))
