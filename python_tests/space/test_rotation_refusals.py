"""Rotations that do not fit each other, or are none, are refused in one sentence."""

from typing import Any

import numpy as np
import pytest
import torch

from vlakern.errors import InputError
from vlakern.space import Pose, Rotation

SHAPES = [((2,), (3,)), ((2, 1, 4), (3, 5)), ((0,), (2,)), ((7, 2), (2, 7))]


@pytest.mark.parametrize(("left", "right"), SHAPES)
def test_batch_shapes_that_do_not_broadcast_are_refused(
    left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    """By both shapes; of rotations, of vectors to rotate and of poses."""
    a, b = Rotation.identity(left), Rotation.identity(right)
    sentence = rf"broadcast expected, found \[{left[0]}.*and \[{right[0]}.*same batch shape"
    with pytest.raises(InputError, match=f"two rotations to compose: .*{sentence}"):
        a.compose(b)
    with pytest.raises(InputError, match=f"rotations and vectors to rotate: .*{sentence}"):
        a.apply(torch.zeros(*right, 3))
    with pytest.raises(InputError, match=sentence):
        Pose(torch.zeros(*left, 3), a).compose(Pose(torch.zeros(*right, 3), b))


@pytest.mark.parametrize(
    ("left", "right", "both"),
    [((2, 1), (3,), (2, 3)), ((), (4,), (4,)), ((5, 1, 0), (2, 1), (5, 2, 0))],
)
def test_batch_shapes_that_broadcast_do(
    left: tuple[int, ...], right: tuple[int, ...], both: tuple[int, ...]
) -> None:
    """As torch's own rule says."""
    a, b = Rotation.identity(left), Rotation.identity(right)
    assert a.compose(b).shape == b.compose(a).shape == both
    assert a.apply(torch.zeros(*right, 3)).shape == (*both, 3)


@pytest.mark.parametrize("kind", [["a"], None, 3, {"axis_angle": 1}])
def test_a_kind_that_is_no_name_is_refused(kind: Any) -> None:
    """Reading and writing."""
    with pytest.raises(InputError, match=r"rotation kind: one of axis_angle, .* expected, found"):
        Rotation.read(torch.zeros(3), kind)
    with pytest.raises(InputError, match=r"rotation kind: one of axis_angle, .* expected, found"):
        Rotation.identity().write(kind)


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0], None, "abc", np.zeros(3)])
def test_what_is_no_tensor_is_refused(values: Any) -> None:
    """By what it is, and what to do."""
    kind = type(values).__name__
    with pytest.raises(InputError, match=f"axis_angle: a tensor expected, found a {kind}; give"):
        Rotation.read(values, "axis_angle")
