"""The cases of ``action_embed``, for tests and benchmarks alike.

rethink-2b: 16 x 200 to 1024; pi0: 50 x 32 to 1024; pi0.5: the same, one projection; SmolVLA: 50 x
32 to 720; metaworld-small: 8 x 4 to 128; and odd ones.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vlakern.ops.action_embed.reference import fold_action_encoder
from vlakern.ops.linear.packed import pack_linear

__all__ = [
    "BENCH",
    "CASES",
    "Case",
    "Encoder",
    "make_encoder",
    "make_inputs",
    "op_arguments",
    "operations",
    "plain_encoder",
    "traffic",
    "written",
]


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        kind: of the packed weights, ``bf16`` or ``fp32``; x and y have the same dtype.
        time: ``shared``, ``R`` or ``RH``: t for all, for each row or for each position.
        layers: 2, or 1 for a projection alone.
    """

    rows: int
    positions: int
    slots: int
    width: int
    kind: str = "bf16"
    time: str = "shared"
    layers: int = 2

    @property
    def dtype(self) -> torch.dtype:
        """Of x and y."""
        return torch.bfloat16 if self.kind == "bf16" else torch.float32

    def __str__(self) -> str:
        """An id such as ``R1-H16-A200-M1024-bf16-shared``."""
        sizes = f"R{self.rows}-H{self.positions}-A{self.slots}-M{self.width}"
        return f"{sizes}-{self.kind}-{self.time}" + "-one" * (self.layers == 1)


CASES = (
    Case(1, 16, 200, 1024),
    Case(2, 50, 32, 720, time="R"),
    Case(1, 50, 32, 1024, layers=1),
    Case(3, 8, 4, 128, "fp32"),
    Case(2, 5, 7, 33, "fp32", "RH"),
    Case(3, 5, 13, 47, "bf16", "RH"),
    Case(2, 3, 31, 17, "fp32", "R", 1),
    Case(2, 3, 31, 18, "bf16", "RH", 1),
    Case(1, 1, 1, 1),
    Case(0, 4, 8, 16),
    Case(2, 0, 8, 16, "fp32", "RH"),
)
BENCH = (
    Case(1, 16, 200, 1024),
    Case(8, 16, 200, 1024),
    Case(1, 16, 200, 1024, time="RH"),
    Case(1, 50, 32, 1024),
    Case(1, 50, 32, 720),
    Case(1, 50, 32, 1024, layers=1),
    Case(1, 8, 4, 128, "fp32"),
)


@dataclass(frozen=True)
class Encoder:
    """The unfolded network, fp32: weights ``[M, ...]`` and biases ``[M]``."""

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    w3: Tensor
    b3: Tensor


def make_encoder(slots: int, width: int, generator: torch.Generator) -> Encoder:
    """Weights as torch initialises linear layers."""

    def uniform(columns: int, *shape: int) -> Tensor:
        bound = 1 / math.sqrt(max(columns, 1))
        return (torch.rand(shape, generator=generator) * 2 - 1) * bound

    return Encoder(
        uniform(slots, width, slots),
        uniform(slots, width),
        uniform(2 * width, width, 2 * width),
        uniform(2 * width, width),
        uniform(width, width, width),
        uniform(width, width),
    )


def make_inputs(case: Case, generator: torch.Generator) -> dict[str, Any]:
    """The network, x ``[R, H, A]`` and embedded flow times ``[M]``, or of each row or position."""
    shape = {
        "shared": (),
        "R": (case.rows, 1),
        "RH": (case.rows, case.positions),
    }[case.time]
    x = torch.randn((case.rows, case.positions, case.slots), generator=generator)
    angles = torch.rand((*shape, case.width), generator=generator) * 6
    return {
        "encoder": make_encoder(case.slots, case.width, generator),
        "x": x.to(case.dtype),
        "embedding": angles.sin(),
    }


def op_arguments(case: Case, inputs: dict[str, Any], isa: str | None = None) -> dict[str, Any]:
    """The arguments of the op by name: x, folded and packed weights, and t."""
    n, shape = inputs["encoder"], tuple(inputs["embedding"].shape)
    if case.layers == 1:
        weights = {"w_in": pack_linear(n.w1, case.kind, isa=isa), "time": n.b1.expand(shape)}
        return {"x": inputs["x"]} | weights
    table = inputs["embedding"].reshape(-1, case.width)
    w_fold, time = fold_action_encoder(n.w1, n.b1, n.w2, n.b2, table)
    return {
        "x": inputs["x"],
        "w_in": pack_linear(w_fold, case.kind, isa=isa),
        "time": time.reshape(shape),
        "w_out": pack_linear(n.w3, case.kind, bias=n.b3, isa=isa),
    }


def plain_encoder(case: Case, inputs: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """The unfolded network in plain PyTorch in one precision, ``[N, M]``."""
    n, x = inputs["encoder"], inputs["x"].to(dtype)
    w = {name: getattr(n, name).to(dtype) for name in ("w1", "b1", "w2", "b2", "w3", "b3")}
    y = functional.linear(x, w["w1"], w["b1"])
    if case.layers == 2:
        time = inputs["embedding"].to(dtype).expand(*x.shape[:-1], case.width)
        z = functional.linear(torch.cat([y, time], -1), w["w2"], w["b2"])
        y = functional.linear(functional.silu(z), w["w3"], w["b3"])
    return y.flatten(0, 1)


def operations(case: Case) -> int:
    """Additions and multiplications of the products of the folded network."""
    return 2 * case.rows * case.positions * _weights(case)


def traffic(case: Case) -> int:
    """Bytes that the mathematics must move: folded weights and x read, y written."""
    return case.dtype.itemsize * (
        _weights(case) + case.rows * case.positions * (case.slots + case.width)
    )


def written(case: Case) -> int:
    """Those of them that are written."""
    return case.dtype.itemsize * case.rows * case.positions * case.width


def _weights(case: Case) -> int:
    return case.slots * case.width + (case.layers - 1) * case.width**2
