"""The cases of ``action_unembed``, for tests and benchmarks alike.

rethink-2b: 1024 to 1024 to 200; pi0 and pi0.5: 1024 to 32 after a norm; SmolVLA: 720 to 32;
metaworld-small: 128 to 128 to 4; and odd ones.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlakern.ops.action_unembed._kernels import FinalNorm
from vlakern.ops.action_unembed.reference import action_unembed_reference
from vlakern.ops.linear.packed import pack_linear

__all__ = [
    "BENCH",
    "CASES",
    "Case",
    "make_inputs",
    "op_arguments",
    "operations",
    "plain_decoder",
    "traffic",
    "written",
]


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        hidden: F, 0 for one projection.
        kind: of the packed weights, ``bf16`` or ``fp32``; h has the same dtype, y is fp32.
        norm: kind of the final norm, or ``""``.
        adaptive: the norm is modulated.
    """

    rows: int
    width: int
    hidden: int
    slots: int
    kind: str = "bf16"
    norm: str = ""
    adaptive: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """Of h."""
        return torch.bfloat16 if self.kind == "bf16" else torch.float32

    def __str__(self) -> str:
        """An id such as ``N16-M1024-F1024-A200-bf16``."""
        sizes = f"N{self.rows}-M{self.width}-F{self.hidden}-A{self.slots}"
        words = [sizes, self.kind] + [self.norm] * bool(self.norm) + ["adaptive"] * self.adaptive
        return "-".join(words)


CASES = (
    Case(16, 1024, 1024, 200),
    Case(50, 1024, 0, 32, norm="rms_plus_one"),
    Case(50, 1024, 0, 32, norm="rms", adaptive=True),
    Case(51, 720, 0, 32, norm="rms"),
    Case(24, 128, 128, 4, "fp32"),
    Case(5, 33, 47, 7, "fp32", "layer"),
    Case(3, 17, 9, 1, "bf16", "rms", True),
    Case(7, 65, 0, 31, "fp32"),
    Case(1, 1, 1, 1),
    Case(0, 16, 16, 8),
)
BENCH = (
    Case(16, 1024, 1024, 200),
    Case(128, 1024, 1024, 200),
    Case(50, 1024, 0, 32, norm="rms_plus_one"),
    Case(50, 720, 0, 32, norm="rms"),
    Case(8, 128, 128, 4, "fp32"),
)


def make_inputs(case: Case, generator: torch.Generator) -> dict[str, Any]:
    """h, weights, biases in fp32, and the norm."""

    def uniform(columns: int, *shape: int) -> Tensor:
        bound = 1 / math.sqrt(max(columns, 1))
        return (torch.rand(shape, generator=generator) * 2 - 1) * bound

    m, f, a = case.width, case.hidden, case.slots
    norm = None
    if case.norm:
        bias = uniform(1, m) if case.norm == "layer" else None
        scale, shift = (uniform(1, m), uniform(1, m)) if case.adaptive else (None, None)
        norm = FinalNorm(case.norm, uniform(1, m), bias, scale, shift)
    return {
        "h": torch.randn((case.rows, m), generator=generator).to(case.dtype),
        "w_hidden": uniform(m, f, m) if f else None,
        "b_hidden": uniform(m, f) if f else None,
        "w_out": uniform(f or m, a, f or m),
        "b_out": uniform(f or m, a),
        "norm": norm,
    }


def op_arguments(case: Case, inputs: dict[str, Any], isa: str | None = None) -> dict[str, Any]:
    """The arguments of the op by name, weights packed."""
    hidden = None
    if inputs["w_hidden"] is not None:
        hidden = pack_linear(inputs["w_hidden"], case.kind, bias=inputs["b_hidden"], isa=isa)
    out = pack_linear(inputs["w_out"], case.kind, bias=inputs["b_out"], isa=isa)
    return {"h": inputs["h"], "w_hidden": hidden, "w_out": out, "norm": inputs["norm"]}


def plain_decoder(inputs: dict[str, Any], dtype: torch.dtype) -> Tensor:
    """The network in plain PyTorch in one precision, every result rounded to it."""
    i: dict[str, Any] = {n: t.to(dtype) if torch.is_tensor(t) else t for n, t in inputs.items()}
    z, norm = i["h"], i["norm"]
    if norm is not None:
        weight = torch.eye(z.shape[1], dtype=torch.float64)
        wide = action_unembed_reference(z.double(), None, None, weight, None, **norm.options)
        z = wide.to(dtype)
    if i["w_hidden"] is not None:
        z = torch.nn.functional.linear(z, i["w_hidden"], i["b_hidden"]).relu()
    return torch.nn.functional.linear(z, i["w_out"], i["b_out"])


def operations(case: Case) -> int:
    """Additions and multiplications of the products."""
    return 2 * case.rows * _weights(case)


def traffic(case: Case) -> int:
    """Bytes that the mathematics must move: weights and h read, y written in h's dtype."""
    return case.dtype.itemsize * (_weights(case) + case.rows * case.width) + written(case)


def written(case: Case) -> int:
    """Those of them that are written."""
    return case.dtype.itemsize * case.rows * case.slots


def _weights(case: Case) -> int:
    return (case.hidden or case.width) * case.slots + case.width * case.hidden
