"""The four parametrisations against numbers worked out by hand, laws of motion and scipy."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vlakern.errors import InputError
from vlakern.space.frames import FRAMES, Frame, Pose, decode, encode, hold_last, past_end
from vlakern.space.rotation import WIDTH, Kind, Rotation
from vlakern.testing import generator

EACH_FRAME = pytest.mark.parametrize("frame", FRAMES)
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}
NUMBERS = arrays(np.float64, st.tuples(st.integers(2, 18), st.just(6)), elements=st.floats(-3, 3))
ONE = arrays(np.float64, 6, elements=st.floats(-3, 3))
QUARTER = math.pi / 2
# A third of a turn about a diagonal, per unit of its direction.
THIRD = 2 * math.pi / 3 / math.sqrt(3)


def pose(*numbers: float) -> torch.Tensor:
    """Position [m] and axis-angle [rad] in fp64."""
    return torch.tensor(numbers, dtype=torch.float64)


def read(values: np.ndarray | torch.Tensor) -> Pose:
    """A pose from position and axis-angle."""
    return Pose.read(torch.as_tensor(values), "axis_angle")


def chunk(shape: tuple[int, ...], dtype: torch.dtype, seed: str = "chunk") -> Pose:
    """Random poses within a metre, of every angle."""
    values = torch.randn(*shape, 6, generator=generator(seed), dtype=torch.float64)
    values[..., :3] = values[..., :3].tanh()
    return read(values.to(dtype))


def same(found: Pose, expected: Pose, tolerance: float) -> None:
    """Equal positions and matrices."""
    close: dict[str, Any] = {"rtol": 0, "atol": tolerance}
    torch.testing.assert_close(found.position, expected.position, **close)
    torch.testing.assert_close(found.rotation.matrix(), expected.rotation.matrix(), **close)


# T_0: at (1, 2, 3), a quarter turn about z, so the hand's x lies along the world's y.
# T_1: 2 m further along the world's y, turned by a quarter about the world's x.
# T_2: 5 m up, along the x of T_1's hand, and turned by a quarter about that hand's z.
BASE = pose(1, 2, 3, 0, 0, QUARTER)
TARGETS = [
    # R_1 = Rx Rz takes x to z, y to -x, z to -y: a third of a turn about (1, -1, 1).
    pose(1, 4, 3, THIRD, -THIRD, THIRD),
    # R_2 = Rx Rz Rz takes x to -x, y to -z, z to -y: half a turn about (0, 1, -1).
    pose(1, 4, 8, 0, math.pi * math.sqrt(0.5), -math.pi * math.sqrt(0.5)),
]
BY_HAND: dict[Frame, list[torch.Tensor]] = {
    # R_2 R_0^T = Rx Rz.
    "world_relative": [pose(0, 2, 0, QUARTER, 0, 0), pose(0, 2, 5, THIRD, -THIRD, THIRD)],
    # The hand's z is the world's -y at T_1.
    "world_delta": [pose(0, 2, 0, QUARTER, 0, 0), pose(0, 0, 5, 0, -QUARTER, 0)],
    # The world's x is the hand's -y at T_0; then that quarter turn and one about z after it.
    "eef_relative": [pose(2, 0, 0, 0, -QUARTER, 0), pose(2, 0, 5, -THIRD, -THIRD, THIRD)],
    "eef_delta": [pose(2, 0, 0, 0, -QUARTER, 0), pose(5, 0, 0, 0, 0, QUARTER)],
}


@EACH_FRAME
def test_numbers_worked_out_by_hand(frame: Frame) -> None:
    """Both ways, for two steps whose rotations do not commute."""
    base, targets, actions = read(BASE), read(torch.stack(TARGETS)), torch.stack(BY_HAND[frame])
    found = encode(targets, base, frame).write("axis_angle")
    torch.testing.assert_close(found, actions, rtol=0, atol=1e-14)
    same(decode(read(actions), base, frame), targets, 1e-14)


@EACH_FRAME
@given(values=NUMBERS, kind=st.sampled_from(tuple(WIDTH)))
def test_decode_undoes_encode(frame: Frame, values: np.ndarray, kind: Kind) -> None:
    """Through the written numbers of every kind, and the other way round too."""
    base, targets = read(values[0]), read(values[1:])
    actions = encode(targets, base, frame)
    same(decode(Pose.read(actions.write(kind), kind), base, frame), targets, 1e-12)
    same(encode(decode(targets, base, frame), base, frame), targets, 1e-12)


@EACH_FRAME
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_fp32_undoes_itself_too(frame: Frame, dtype: torch.dtype) -> None:
    """A batch of 64 chunks of 16 moves of centimetres: within a micrometre and 1e-6."""
    base = chunk((64,), dtype)
    moves = chunk((64, 16), torch.float64, "moves").write("axis_angle") * 0.05
    targets = decode(read(moves.to(dtype)), base, frame)
    same(decode(encode(targets, base, frame), base, frame), targets, TOLERANCE[dtype])


@EACH_FRAME
@given(values=NUMBERS, change=ONE)
def test_a_change_of_the_world_frame(frame: Frame, values: np.ndarray, change: np.ndarray) -> None:
    """T -> G T: EEF actions stay; World actions turn, p -> G_R p and R -> G_R R G_R^T."""
    base, targets, g = read(values[0]), read(values[1:]), read(change)
    before = encode(targets, base, frame)
    after = encode(g[None] @ targets, g @ base, frame)
    if frame.startswith("world"):
        turn = g.rotation[None]
        before = Pose(turn.apply(before.position), turn @ before.rotation @ turn.inverse())
    same(after, before, 1e-12)


@given(values=NUMBERS)
def test_world_deltas_compose_to_the_relative_chunk(values: np.ndarray) -> None:
    """Positions add up; the later rotation multiplies from the left: A_t .. A_2 A_1."""
    base, targets = read(values[0]), read(values[1:])
    deltas = encode(targets, base, "world_delta")
    relative = encode(targets, base, "world_relative")
    total, position = Rotation.identity((), torch.float64), torch.zeros(3, dtype=torch.float64)
    for t in range(len(values) - 1):
        total, position = deltas.rotation[t] @ total, position + deltas.position[t]
        same(Pose(position, total), relative[t], 1e-12)


@given(values=NUMBERS)
def test_eef_deltas_compose_to_the_relative_chunk(values: np.ndarray) -> None:
    """On SE(3), the later step multiplies from the right: A_1 A_2 .. A_t."""
    base, targets = read(values[0]), read(values[1:])
    deltas = encode(targets, base, "eef_delta")
    relative = encode(targets, base, "eef_relative")
    total = Pose(torch.zeros(3, dtype=torch.float64), Rotation.identity((), torch.float64))
    for t in range(len(values) - 1):
        total = total @ deltas[t]
        same(total, relative[t], 1e-12)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_poses_and_actions_agree_with_scipy(dtype: torch.dtype) -> None:
    """RigidTransform's product, inverse and T_before^-1 T_t; World from its parts."""
    transform: Any = pytest.importorskip("scipy.spatial.transform")
    if not hasattr(transform, "RigidTransform"):
        pytest.skip("SciPy 1.16 brings RigidTransform")

    def scipy(poses: Pose) -> Any:
        turn = transform.Rotation.from_matrix(poses.rotation.matrix().double().numpy())
        return transform.RigidTransform.from_components(poses.position.double().numpy(), turn)

    def near(found: Pose, expected: Any, steps: int = 1) -> None:
        tolerance = steps * TOLERANCE[dtype]
        for ours, theirs in (
            (found.position, expected.translation),
            (found.rotation.matrix(), expected.rotation.as_matrix()),
        ):
            np.testing.assert_allclose(ours.double().numpy(), theirs, rtol=0, atol=tolerance)

    a, b = chunk((32,), dtype, "a"), chunk((32,), dtype, "b")
    near(a @ b, scipy(a) * scipy(b))
    near(a.compose(b), scipy(a) * scipy(b))
    near(a.inverse(), scipy(a).inv())
    before = {"relative": scipy(b[:1]), "delta": scipy(Pose(*_shifted(a, b[0])))}
    for frame in FRAMES:
        actions, start = encode(a, b[0], frame), before[frame.split("_")[1]]
        expected = start.inv() * scipy(a)
        if frame.startswith("world"):
            move = scipy(a).translation - start.translation
            turn = scipy(a).rotation * start.rotation.inv()
            expected = transform.RigidTransform.from_components(move, turn)
        near(actions, expected)
        # 32 moves of up to 2 m, one after the other.
        near(decode(actions, b[0], frame), scipy(a), steps=10)


def _shifted(poses: Pose, base: Pose) -> tuple[torch.Tensor, Rotation]:
    position = torch.cat((base.position[None], poses.position[:-1]))
    return position, Rotation(torch.cat((base.rotation.q[None], poses.rotation.q[:-1])))


@EACH_FRAME
def test_rows_of_a_batch_do_not_mix(frame: Frame) -> None:
    """[2, 3, H] with [2, 3] bases is six chunks by themselves, to the last bit."""
    targets, base = chunk((2, 3, 5), torch.float32), chunk((2, 3), torch.float32, "base")
    actions = encode(targets, base, frame)
    again = decode(actions, base, frame)
    assert actions.shape == (2, 3, 5)
    for index in itertools.product(range(2), range(3)):
        alone = encode(targets[index], base[index], frame)
        assert torch.equal(alone.write("rotation_6d"), actions[index].write("rotation_6d"))
        back = decode(alone, base[index], frame)
        assert torch.equal(back.write("rotation_6d"), again[index].write("rotation_6d"))


def _angles(values: torch.Tensor, angle: float) -> torch.Tensor:
    """The same axes, every turn by ``angle`` [rad]."""
    turn = torch.nn.functional.normalize(values[..., 3:], dim=-1) * angle
    return torch.cat((values[..., :3], turn), -1)


@EACH_FRAME
@pytest.mark.parametrize("angle", [0.0, 1e-6, 1e-3, 1.0, math.pi - 1e-3, math.pi - 1e-6])
def test_gradients_are_those_of_finite_differences(frame: Frame, angle: float) -> None:
    """Of the actions, and of the poses that come back, in small moves of targets and base."""
    base = chunk((2,), torch.float64, "base")
    moves = read(_angles(chunk((2, 3), torch.float64).write("axis_angle"), angle))
    targets = decode(moves, base, frame)
    still = [torch.zeros(*s, 6, dtype=torch.float64, requires_grad=True) for s in ((2, 3), (2,))]

    def actions(target: torch.Tensor, start: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from_, to = base @ read(start), targets @ read(target)
        written = encode(to, from_, frame).write("axis_angle")
        return written, decode(read(written), from_, frame).write("rotation_6d")

    # A step of 1e-7 stays on this side of pi; noise of the differences is 1e-16 / 1e-7.
    assert torch.autograd.gradcheck(actions, still, eps=1e-7, atol=1e-6)


@EACH_FRAME
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_gradients_are_finite_at_zero_and_at_pi(frame: Frame, dtype: torch.dtype) -> None:
    """Targets that equal the base, and targets turned by exactly pi, written in every kind."""
    for turn in ((1.0, 0, 0, 0), (0.0, 1, 0, 0), (0.0, 0, 0, 1)):
        q = torch.tensor(turn, dtype=dtype).repeat(4, 1).requires_grad_()
        base_q = torch.tensor([1.0, 0, 0, 0], dtype=dtype, requires_grad=True)
        base = Pose(torch.zeros(3, dtype=dtype), Rotation(base_q))
        actions = encode(Pose(torch.zeros(4, 3, dtype=dtype), Rotation(q)), base, frame)
        for kind in WIDTH:
            numbers = actions.write(kind)
            back = decode(Pose.read(numbers, kind, project=True), base, frame).write(kind)
            total = numbers.sum() + back.sum() + actions.rotation.angle().sum()
            for gradient in torch.autograd.grad(total, (q, base_q), retain_graph=True):
                assert gradient.isfinite().all(), (turn, kind)


def test_the_graph_compiles_whole() -> None:
    """torch.compile(fullgraph=True) of encode and decode gives what eager gives."""
    base, targets = chunk((2,), torch.float32, "base"), chunk((2, 6), torch.float32)

    def both(values: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
        from_ = Pose.read(start, "rotation_6d", project=True)
        poses = Pose.read(values, "rotation_6d", project=True)
        chunks = [encode(poses, from_, frame) for frame in FRAMES]
        back = [decode(a, from_, frame) for a, frame in zip(chunks, FRAMES, strict=True)]
        return torch.stack([p.write("axis_angle") for p in (*chunks, *back)])

    compiled: Callable[..., torch.Tensor]
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    values, start = targets.write("rotation_6d"), base.write("rotation_6d")
    torch.testing.assert_close(compiled(values, start), both(values, start), rtol=0, atol=1e-6)


VALID = torch.tensor([[True, True, False, False], [True, True, True, True]])


@EACH_FRAME
def test_actions_past_the_end_are_the_identity(frame: Frame) -> None:
    """A delta then stays, a relative action means the start; earlier steps keep every bit."""
    base, targets = chunk((2,), torch.float64, "base"), chunk((2, 4), torch.float64)
    actions = encode(targets, base, frame)
    padded = past_end(actions, VALID)
    assert torch.equal(padded.position[VALID], actions.position[VALID])
    assert torch.equal(padded.rotation.q[VALID], actions.rotation.q[VALID])
    assert torch.equal(padded[0, 2:].write("axis_angle"), torch.zeros(2, 6).double())
    end = targets[0, 1] if frame.endswith("delta") else base[0]
    for t in (2, 3):
        same(decode(padded, base, frame)[0, t], end, 1e-14)


def test_absolute_values_past_the_end_hold_the_last() -> None:
    """The last valid row of each chunk, and its gradient is the sum of what held it."""
    values = torch.arange(16.0).reshape(2, 4, 2).requires_grad_()
    held = hold_last(values, VALID)
    expected = [[[0, 1], [2, 3], [2, 3], [2, 3]], [[8, 9], [10, 11], [12, 13], [14, 15]]]
    assert held.tolist() == expected
    (gradient,) = torch.autograd.grad(held.sum(), values)
    assert gradient[..., 0].tolist() == [[1, 3, 0, 0], [1, 1, 1, 1]]


@pytest.mark.parametrize(
    ("valid", "message"),
    [
        (~VALID, r"valid: True up to .* found \[False, False, True, True\] for chunk \[0\]; a pad"),
        (VALID & False, r"valid: True up to .* found \[False, False, False, False\] for chunk"),
        (VALID.roll(1, 1), r"valid: True up to .* found \[False, True, True, False\]"),
        (VALID[0], r"valid: bool \[2, 4\] expected, found torch.bool \[4\]; give one"),
        (VALID.float(), r"valid: bool \[2, 4\] expected, found torch.float32 \[2, 4\]; give"),
    ],
)
def test_masks_of_another_form_are_refused(valid: torch.Tensor, message: str) -> None:
    """A padding mask is the most likely mistake: it is the inverse of this one."""
    with pytest.raises(InputError, match=message):
        hold_last(torch.zeros(2, 4, 3), valid)
    with pytest.raises(InputError, match=message):
        past_end(chunk((2, 4), torch.float32), valid)


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (torch.zeros(2, 7), "axis_angle", r"hand: width 6 \(position 3, axis_angle 3\) .*\[2, 7\]"),
        (torch.zeros(2, 6), "quaternion_xyzw", r"hand: width 7 .*quaternion_xyzw 4.* \[2, 6\]"),
        (torch.zeros(2, 7), "quaternion_xyzw", r"hand: a unit quaternion .*\[0\], found norm 0"),
        (torch.zeros(2, 6), "euler", r"rotation kind: one of axis_angle, .*'euler'"),
        (torch.tensor([0, math.nan, 0, 0, 0, 0]), "axis_angle", r"hand: finite positions .*\[1\]"),
        (torch.tensor([0, 0, 0, 0, math.inf, 0]), "axis_angle", r"hand: finite values .*inf; drop"),
    ],
)
def test_values_that_are_no_pose_are_refused(
    values: torch.Tensor, kind: Kind, message: str
) -> None:
    """A wrong width, no rotation, an unknown kind, a number that is not finite."""
    with pytest.raises(InputError, match=message):
        Pose.read(values, kind, what="hand")


def test_chunks_that_do_not_fit_are_refused() -> None:
    """Bases of another batch, an unknown frame, an empty chunk, halves that do not match."""
    targets, base = chunk((2, 4), torch.float32), chunk((2,), torch.float32)
    for function in (encode, decode):
        with pytest.raises(InputError, match=r"base: batch shape \[2\] .* found \[\]; give one"):
            function(targets, base[0], "eef_delta")
        with pytest.raises(InputError, match=r"base: batch shape \[2\] .* \[2, 0\] .*at least 1"):
            function(targets[:, :0], base, "eef_delta")
        with pytest.raises(InputError, match=r"frame: one of world_relative, .* found 'base'"):
            function(targets, base, "base")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"pose: a position \[2, 3\] of torch.float32 .*\[3\]"):
        Pose(torch.zeros(3), base.rotation)
    with pytest.raises(InputError, match=r"pose: .* found \[2, 3\] of torch.float64"):
        Pose(torch.zeros(2, 3).double(), base.rotation)
