"""The cases of ``norm``, for tests and benchmarks alike.

Widths: 2048 and 1024 (rethink-2b, pi0), 1152 (SigLIP), 960 and 720 (SmolVLA), 192 and 128
(metaworld-small), and odd ones. Letters: R rows, M width, B groups of rows.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlakern.ops.norm.reference import group_of_rows

__all__ = [
    "BENCH",
    "CASES",
    "FLOAT_NAMES",
    "Case",
    "draw_case",
    "make_inputs",
    "operations",
    "plain_norm",
    "traffic",
    "written",
]

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SHORT = {F32: "fp32", BF16: "bf16", F16: "fp16"}
FLOAT_NAMES = ("x", "weight", "bias", "scale", "shift", "gate", "residual")


@dataclass(frozen=True)
class Case:
    """One call: sizes, dtypes and what is optional in it.

    Attributes:
        parts: which optional arguments there are, of ``weight bias scale shift gate residual``.
        groups: rows of the modulations; 0 for ``[M]``.
        indexed: rows find their group through ``row_group``.
        dtype: of x and residual.
        param_dtype: of everything else; None for ``dtype``.
        gap: elements between the rows of x and residual.
        apart: the elements of a row are two apart (the functional face copies them).
    """

    rows: int
    width: int
    kind: str = "rms"
    parts: tuple[str, ...] = ("weight",)
    groups: int = 0
    indexed: bool = False
    dtype: torch.dtype = F32
    param_dtype: torch.dtype | None = None
    gap: int = 0
    apart: bool = False

    def __str__(self) -> str:
        """An id such as ``R16-M1024-rms-bf16-weight+residual``."""
        words = [f"R{self.rows}-M{self.width}", self.kind, SHORT[self.dtype]]
        words += [SHORT[self.param_dtype]] if self.param_dtype else []
        words += ["+".join(self.parts) or "bare"]
        words += [f"{'index' if self.indexed else 'groups'}{self.groups}"] * bool(self.groups)
        words += [f"gap{self.gap}"] * bool(self.gap) + ["apart"] * self.apart
        return "-".join(words)


RESIDUAL = ("weight", "residual")
ADAPTIVE = ("scale", "shift", "residual", "gate")
EVERYTHING = ("weight", "bias", "scale", "shift", "residual", "gate")

CASES = (
    Case(16, 1024, dtype=BF16),
    Case(17, 1024, parts=RESIDUAL, dtype=BF16),
    Case(50, 1024, "rms_plus_one", RESIDUAL, dtype=BF16),
    Case(50, 1024, parts=ADAPTIVE, groups=1, dtype=BF16),
    Case(220, 2048, parts=RESIDUAL, dtype=BF16),
    Case(100, 720, parts=RESIDUAL, dtype=BF16, param_dtype=F32),
    Case(64, 1152, "layer", ("weight", "bias", "residual"), dtype=BF16),
    Case(40, 192, parts=RESIDUAL),
    Case(40, 128, parts=RESIDUAL, dtype=F32, param_dtype=BF16),
    Case(33, 64, "layer", EVERYTHING, groups=3),
    Case(35, 130, "layer", EVERYTHING, groups=4, indexed=True, dtype=BF16, param_dtype=F32),
    Case(34, 65, "rms_plus_one", ("weight", "scale", "residual"), groups=2, dtype=F16),
    Case(130, 33, parts=("weight", "shift"), dtype=BF16, gap=3),
    Case(9, 17, "layer", ("weight", "bias"), gap=5),
    Case(9, 31, parts=RESIDUAL, apart=True),
    Case(7, 48, "layer", (), dtype=F16),
    Case(5, 16, parts=("scale",), groups=5, dtype=BF16),
    Case(5, 100, parts=("residual", "gate"), param_dtype=F16),
    Case(1, 1, parts=RESIDUAL),
    Case(2, 1, "layer", ("weight", "bias")),
    Case(0, 8, parts=ADAPTIVE),
    Case(0, 8, parts=ADAPTIVE, groups=2, indexed=True),
)
BENCH = (
    Case(1, 1024, dtype=BF16),
    Case(16, 1024, parts=RESIDUAL, dtype=BF16),
    Case(50, 1024, parts=ADAPTIVE, groups=1, dtype=BF16),
    Case(220, 2048, parts=RESIDUAL, dtype=BF16),
    Case(220, 2048, dtype=F32),
    Case(968, 2048, "rms_plus_one", RESIDUAL, dtype=BF16),
    Case(768, 1152, "layer", ("weight", "bias", "residual"), dtype=BF16),
    Case(40, 192, parts=RESIDUAL, dtype=F32),
    Case(8192, 2048, parts=RESIDUAL, dtype=BF16),
    Case(8192, 2048, dtype=BF16),
)


def draw_case(generator: torch.Generator) -> Case:
    """A random small case."""

    def pick(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    kind = ("rms", "rms_plus_one", "layer")[pick(3)]
    optional = ("weight", *(("bias",) if kind == "layer" else ()), "scale", "shift", "residual")
    parts = tuple(name for name in optional if pick(2))
    parts += ("gate",) if "residual" in parts and pick(2) else ()
    case = Case(
        pick(70),
        1 + pick(150),
        kind,
        parts,
        dtype=(F32, BF16, F16)[pick(3)],
        param_dtype=(None, F32, BF16, F16)[pick(4)],
        gap=(0, 1, 8)[pick(3)],
        apart=pick(5) == 0,
    )
    if {"scale", "shift", "gate"} & set(parts) and pick(2):
        groups, indexed = 1 + pick(5), bool(pick(2))
        rows = case.rows if indexed else case.rows // groups * groups
        case = replace(case, rows=rows, groups=groups, indexed=indexed)
    return case


def make_inputs(case: Case, generator: torch.Generator) -> dict[str, Any]:
    """Random arguments of ``norm`` on the generator's device, by name."""
    param_dtype = case.param_dtype or case.dtype

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    def matrix() -> Tensor:
        full = draw(case.rows, (case.width + case.gap) * (1 + case.apart)).to(case.dtype)
        return full[:, : case.width * (1 + case.apart) : 1 + case.apart]

    modulation = (case.groups, case.width) if case.groups else (case.width,)
    inputs: dict[str, Any] = {"x": matrix(), "kind": case.kind, "eps": 1e-5}
    makers = {
        "weight": lambda: (0.5 + 0.5 * draw(case.width)).to(param_dtype),
        "bias": lambda: draw(case.width).to(param_dtype),
        "residual": matrix,
    }
    for name in case.parts:
        inputs[name] = makers.get(name, lambda: (0.5 * draw(*modulation)).to(param_dtype))()
    if case.indexed:
        index = torch.randint(case.groups, (case.rows,), generator=generator, device=draw(1).device)
        inputs["row_group"] = index.to(torch.int32)
    return inputs


def plain_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    kind: str,
    eps: float,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    row_group: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What one writes in plain PyTorch: torch's norms, the rest in x's own dtype."""
    dtype = x.dtype

    def of_row(modulation: Tensor) -> Tensor:
        if modulation.ndim == 1:
            return modulation.to(dtype)
        groups = group_of_rows(len(x), len(modulation), row_group, x.device)
        return modulation.to(dtype)[groups]

    h = x
    if residual is not None:
        added = residual.to(dtype)
        h = x + (added if gate is None else of_row(gate) * added)
    w = None if weight is None else weight.to(dtype)
    width = (x.shape[1],)
    if kind == "layer":
        y = F.layer_norm(h, width, w, None if bias is None else bias.to(dtype), eps)
    else:
        y = F.rms_norm(h, width, 1 + w if kind == "rms_plus_one" and w is not None else w, eps)
    if scale is not None:
        y = y * (1 + of_row(scale))
    return (y if shift is None else y + of_row(shift)), h


def traffic(case: Case, backward: bool = False) -> int:
    """Bytes that the mathematics must move.

    x (and residual) read, y (and h) written; backward reads dy, h (and dh) and writes dx (and the
    residual's gradient). Weights and modulations are read, and backward their gradients written.
    """
    streams = 2 + 2 * ("residual" in case.parts) + backward
    return case.rows * case.width * case.dtype.itemsize * streams + _shared(case) * (1 + backward)


def written(case: Case, backward: bool = False) -> int:
    """Those of them that are written."""
    streams = 1 + ("residual" in case.parts)
    return case.rows * case.width * case.dtype.itemsize * streams + _shared(case) * backward


def _shared(case: Case) -> int:
    """Bytes of weights and modulations."""
    size = (case.param_dtype or case.dtype).itemsize * case.width
    modulations = sum(name in ("scale", "shift", "gate") for name in case.parts)
    weights = sum(name in ("weight", "bias") for name in case.parts)
    return size * (weights + modulations * max(1, case.groups))


def operations(case: Case, backward: bool = False) -> int:
    """Additions and multiplications: 4 an element and one for each part, 12 backward."""
    return case.rows * case.width * ((12 if backward else 4) + len(case.parts))
