"""action_decode against scipy's rotations, which share no code with either backend."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from vlakern import ops
from vlakern.ops.action_decode.cases import pose_inputs
from vlakern.ops.action_decode.reference import FRAMES, KINDS

# (backend, dtype, how far from scipy [m, rad])
WAYS = (("cpu", "float32", 2e-6), ("reference", "float32", 5e-6), ("reference", "float64", 1e-12))


def scipy_decode(
    p: np.ndarray, R: list[Rotation], p_0: np.ndarray, R_0: Rotation, frame: str
) -> tuple[np.ndarray, list[Rotation]]:
    """One row's poses by scipy, position by position."""
    positions, rotations = [], []
    from_p, from_R = p_0, R_0
    for move, turn in zip(p, R, strict=True):
        world = frame.startswith("world")
        positions.append(from_p + (move if world else from_R.apply(move)))
        rotations.append(turn * from_R if world else from_R * turn)
        if frame.endswith("delta"):
            from_p, from_R = positions[-1], rotations[-1]
    return np.array(positions), rotations


def numbers(R: Rotation, kind: str) -> np.ndarray:
    """A rotation as a model may say it: not normalised, second column not orthogonal."""
    if kind == "axis_angle":
        return R.as_rotvec()
    if kind == "rotation_6d":
        first, second = R.as_matrix()[:, 0], R.as_matrix()[:, 1]
        return np.concatenate((0.7 * first, 1.6 * second - 0.4 * first))
    q = -1.3 * R.as_quat()
    return q if kind == "quaternion_xyzw" else np.roll(q, 1)


def rotation_of(values: np.ndarray, kind: str) -> Rotation:
    if kind == "axis_angle":
        return Rotation.from_rotvec(values)
    if kind == "rotation_6d":
        first, second = values[..., :3], values[..., 3:]
        return Rotation.from_matrix(np.stack((first, second, np.cross(first, second)), -1))
    return Rotation.from_quat(values if kind == "quaternion_xyzw" else np.roll(values, -1, -1))


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kind_out", KINDS)
@pytest.mark.parametrize(("backend", "dtype", "limit"), WAYS)
def test_scipy(
    backend: str, dtype: str, limit: float, kind_out: str, kind: str, frame: str, seed: int
) -> None:
    """Frames and kinds mean what scipy's rotations say; angles and signs are canonical."""
    draw, rows, positions = np.random.default_rng(seed), 3, 6
    p = draw.normal(size=(rows, positions, 3))
    R = [list(Rotation.from_quat(draw.normal(size=(positions, 4)))) for _ in range(rows)]
    p_0, R_0 = draw.normal(size=(rows, 3)), Rotation.from_quat(draw.normal(size=(rows, 4)))
    turns = np.array([[numbers(one, kind) for one in row] for row in R])
    base = np.concatenate((p_0, np.roll(R_0.as_quat(), 1, -1)), -1)
    x, base = (
        torch.tensor(v).to(getattr(torch, dtype)) for v in (np.concatenate((p, turns), -1), base)
    )
    given = pose_inputs(x, base, kind, kind_out, frame)
    found = ops.action_decode(**given, backend=backend).double().numpy()
    for b in range(rows):
        expected, rotations = scipy_decode(p[b], R[b], p_0[b], R_0[b], frame)
        assert np.abs(found[b, :, :3] - expected).max() < limit
        turned = Rotation.concatenate(rotations).inv() * rotation_of(found[b, :, 3:], kind_out)
        assert turned.magnitude().max() < limit
    if kind_out == "axis_angle":
        assert np.linalg.norm(found[..., 3:], axis=-1).max() <= math.pi + limit
    if kind_out.startswith("quaternion"):
        assert found[..., 3 if kind_out.endswith("wxyz") else 6].min() >= 0


@pytest.mark.parametrize("kind_out", KINDS)
@pytest.mark.parametrize(("backend", "dtype", "limit"), WAYS)
def test_angles_at_zero_and_pi(
    backend: str, dtype: str, limit: float, kind_out: str, seed: int
) -> None:
    """No digits are lost where the axis vanishes and where it changes sign."""
    near = [0.0, 1e-30, 1e-12, 1e-7, 1e-4, 1e-2]
    angles = np.array([*near, *(math.pi - one for one in near), *(math.pi + one for one in near)])
    axes = np.random.default_rng(seed).normal(size=(len(angles), 3))
    axes[::3] = np.roll(np.eye(3), 1, 0)[
        np.arange(len(axes[::3])) % 3
    ]  # where terms cancel exactly
    turns = angles[:, None] * axes / np.linalg.norm(axes, axis=-1, keepdims=True)
    x = torch.tensor(np.concatenate((0 * turns, turns), -1)).to(getattr(torch, dtype))
    base = torch.tensor([[0.0, 0, 0, 1, 0, 0, 0]], dtype=x.dtype)
    given = pose_inputs(x[None], base, "axis_angle", kind_out, "eef_relative")
    found = ops.action_decode(**given, backend=backend)[0, :, 3:]
    values = found.double().numpy()
    given = Rotation.from_rotvec(x[:, 3:].double().numpy())
    assert (given.inv() * rotation_of(values, kind_out)).magnitude().max() < limit
    if kind_out == "axis_angle":
        small = angles < 1e-3
        assert np.allclose(values[small], turns[small], rtol=10 * limit, atol=1e-37)
