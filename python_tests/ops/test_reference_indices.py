"""The definitions refuse indices that lead nowhere, as the kernels do, instead of counting back."""

from collections.abc import Callable

import pytest
import torch

from vlakern import ops
from vlakern.errors import InputError


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def norm(backend: str) -> None:
    vectors = torch.zeros(2, 8)
    ops.norm(torch.ones(2, 8), scale=vectors, row_group=int32(0, -1), backend=backend)


def qkv_prep(backend: str) -> None:
    qkv = [torch.ones(3, 8) for _ in range(3)]
    angles = torch.ones(3, 4)
    rows = [int32(0, 1, -1)]
    ops.qkv_prep(qkv, [], [], angles, angles, rows, heads=1, groups=1, backend=backend)


def flow_loss(backend: str) -> None:
    x = torch.zeros(4, 2, 3)
    given = {"noise": x, "group": int32(0, 1, 2, -1), "groups": 3, "backend": backend}
    ops.flow_loss(x, x, **given)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("call", [norm, qkv_prep, flow_loss])
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_an_index_below_zero_is_refused(call: Callable[[str], None], backend: str) -> None:
    """One sentence, whatever computes."""
    with pytest.raises(InputError):
        call(backend)
