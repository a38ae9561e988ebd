"""The cases of ``linear``, for tests and benchmarks alike.

Real ones: rethink-2b (widths 2048 and 1024, MLPs 6144 and 3072), pi0 and pi0.5 (2048 and 1024, MLPs
16384 and 4096), SmolVLA (960 and 720), SigLIP (1152, MLP 4304), metaworld-small (192 and 128).
Letters: M rows, K inputs, N weight rows, C output columns.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlakern.ops.linear.packed import PackedLinear, Unpacked, pack_linear
from vlakern.ops.linear.reference import (
    GATED,
    KINDS,
    activate,
    linear_reference,
    quantises,
    quantize_rows,
)

__all__ = [
    "BENCH",
    "CASES",
    "REDUCED",
    "SHORT",
    "Case",
    "draw_case",
    "exact_linear",
    "make_inputs",
    "operations",
    "plain_linear",
    "traffic",
    "written",
]

F32, BF16 = torch.float32, torch.bfloat16
KIND_BYTES = {"bf16": 2, "fp32": 4, "int8": 1}  # of the kinds that every device has


@dataclass(frozen=True)
class Case:
    """One call: sizes, kinds and what is optional in it.

    Attributes:
        parts: which of ``bias`` (at the call), ``packed bias``, ``residual`` and ``row_scale``.
        layout: ``"dense"``, ``"padded"`` (rows further apart) or ``"columns apart"``.
    """

    m: int
    n: int
    k: int
    kind: str = "bf16"
    x_dtype: torch.dtype = BF16
    out_dtype: torch.dtype = BF16
    activation: str = "none"
    parts: frozenset[str] = frozenset()
    layout: str = "dense"

    def __str__(self) -> str:
        """An id such as ``M17-N2048-K1024-bf16-bf16-bf16-silu``."""
        short = {F32: "fp32", BF16: "bf16"}
        words = [f"M{self.m}-N{self.n}-K{self.k}", self.kind]
        words += [short[self.x_dtype], short[self.out_dtype], self.activation]
        words += [part.replace(" ", "_") for part in sorted(self.parts)]
        words += [self.layout.replace(" ", "_")] * (self.layout != "dense")
        return "-".join(words)

    @property
    def columns(self) -> int:
        """C."""
        return self.n // 2 if self.activation in GATED else self.n


def _parts(*names: str) -> frozenset[str]:
    return frozenset(names)


BIAS, PACKED, RESIDUAL, SCALE = "bias", "packed bias", "residual", "row_scale"
CASES = (
    Case(1, 64, 32),
    Case(1, 2048, 1024, parts=_parts(RESIDUAL)),
    Case(2, 48, 100, activation="silu", parts=_parts(BIAS)),
    Case(7, 130, 66, activation="gelu_erf", parts=_parts(PACKED)),
    Case(14, 96, 64, activation="gelu_tanh", parts=_parts(PACKED), layout="padded"),
    Case(15, 96, 65, activation="relu", parts=_parts(BIAS, SCALE)),
    Case(17, 256, 1024, activation="silu_gate", parts=_parts(SCALE)),
    Case(17, 62, 511, activation="gelu_tanh_gate", parts=_parts(PACKED, RESIDUAL, SCALE)),
    Case(28, 33, 1025, parts=_parts(RESIDUAL), layout="columns apart"),
    Case(29, 65, 1027, parts=_parts(BIAS, RESIDUAL)),
    Case(50, 64, 2049, "bf16", F32, F32, parts=_parts(RESIDUAL)),
    Case(51, 100, 4304, "bf16", F32, BF16, parts=_parts(PACKED)),
    Case(220, 40, 1152, "bf16", BF16, F32, "gelu_tanh", _parts(PACKED, RESIDUAL)),
    Case(532, 34, 200, activation="gelu_tanh_gate"),
    Case(260, 96, 5000, parts=_parts(RESIDUAL)),
    Case(1, 32, 64, "fp32", F32, F32),
    Case(3, 30, 7, "fp32", F32, F32, "gelu_erf", _parts(BIAS, RESIDUAL, SCALE)),
    Case(17, 192, 128, "fp32", F32, F32, "silu_gate", _parts(PACKED)),
    Case(25, 64, 1500, "fp32", F32, F32, "gelu_tanh", _parts(PACKED)),
    Case(26, 48, 300, "fp32", BF16, BF16, "gelu_tanh_gate", _parts(SCALE)),
    Case(64, 32, 192, "fp32", BF16, F32, layout="padded"),
    Case(270, 64, 2600, "fp32", F32, F32),
    Case(1, 64, 64, "int8"),
    Case(5, 96, 133, "int8", F32, F32, "silu", _parts(BIAS, SCALE)),
    Case(17, 128, 1024, "int8", BF16, BF16, "silu_gate", _parts(PACKED)),
    Case(17, 70, 2050, "int8", F32, F32, parts=_parts(RESIDUAL)),
    Case(50, 64, 300, "int8", BF16, F32, "gelu_tanh_gate", _parts(RESIDUAL)),
    Case(130, 66, 4100, "int8", BF16, BF16, "gelu_erf", _parts(PACKED, RESIDUAL), "padded"),
    Case(600, 40, 9000, "int8", F32, F32),
    Case(0, 32, 16),
    Case(3, 0, 16, "fp32", F32, F32),
    Case(3, 20, 0, activation="silu", parts=_parts(BIAS, RESIDUAL)),
    Case(2, 20, 0, "int8", F32, F32, parts=_parts(BIAS)),
    Case(1, 2, 1, activation="silu_gate"),
)

# For GPUs: every kind and way, small enough for Triton's interpreter.
REDUCED = (
    Case(1, 64, 32, parts=_parts(RESIDUAL)),
    Case(1, 1, 1, activation="silu"),
    Case(7, 70, 66, activation="gelu_erf", parts=_parts(PACKED)),
    Case(17, 62, 511, activation="gelu_tanh_gate", parts=_parts(PACKED, RESIDUAL, SCALE)),
    Case(28, 33, 1025, parts=_parts(BIAS, RESIDUAL), layout="columns apart"),
    Case(40, 96, 300, "bf16", F32, F32, "silu_gate", _parts(RESIDUAL), "padded"),
    Case(130, 200, 130, "bf16", BF16, F32, "gelu_tanh", _parts(BIAS)),
    Case(600, 40, 100, activation="relu", parts=_parts(PACKED, RESIDUAL)),
    Case(530, 34, 65, "bf16", F32, F32, "silu_gate", _parts(SCALE)),
    Case(3, 30, 7, "fp32", F32, F32, "gelu_erf", _parts(BIAS, RESIDUAL, SCALE)),
    Case(26, 48, 300, "fp32", BF16, BF16, "gelu_tanh_gate", _parts(SCALE)),
    Case(520, 24, 50, "fp32", F32, F32, parts=_parts(BIAS)),
    Case(1, 64, 64, "int8"),
    Case(5, 96, 133, "int8", F32, F32, "silu", _parts(BIAS, SCALE)),
    Case(17, 140, 1040, "int8", BF16, BF16, "silu_gate", _parts(PACKED)),
    Case(70, 66, 300, "int8", BF16, F32, "gelu_tanh_gate", _parts(RESIDUAL), "padded"),
    Case(540, 40, 90, "int8", F32, BF16),
    Case(1, 64, 32, "fp8"),
    Case(17, 62, 515, "fp8", BF16, BF16, "silu_gate", _parts(PACKED, RESIDUAL)),
    Case(50, 40, 100, "fp8", F32, F32, "silu", _parts(BIAS, SCALE)),
    Case(65, 66, 300, "fp8", BF16, BF16, "gelu_tanh_gate", _parts(PACKED)),
    Case(131, 72, 129, "fp8", F32, F32, parts=_parts(RESIDUAL), layout="columns apart"),
    Case(0, 32, 16),
    Case(3, 0, 16, "int8", F32, F32),
    Case(3, 20, 0, activation="silu", parts=_parts(BIAS, RESIDUAL)),
    Case(70, 20, 0, "fp8", F32, F32, parts=_parts(BIAS)),
)

ROWS = (1, 17, 50, 220, 512)
# (N, K) of query, key and value together, of their output, of gate and up together, and of down
LAYERS = {
    "rethink-2b": ((4096, 2048), (2048, 2048), (12288, 2048), (2048, 6144)),
    "rethink-2b's and rethink-2b-wide's expert": (
        (4096, 1024),
        (1024, 2048),
        (6144, 1024),
        (1024, 3072),
        (1024, 6144),
    ),
    "pi0 and pi0.5": ((2560, 2048), (32768, 2048), (2048, 16384)),
    "their expert": ((2560, 1024), (8192, 1024), (1024, 4096)),
    "SmolVLA": ((1600, 960), (960, 960), (5120, 960), (960, 2560)),
    "its expert": ((1600, 720), (720, 960), (4096, 720), (720, 2048)),
    "InternViT": ((3072, 1024), (1024, 1024), (4096, 1024)),
    "SigLIP": ((3456, 1152), (1152, 1152), (4304, 1152), (1152, 4304)),
    "others": ((2048, 1024),),
}
BENCH = tuple(
    Case(m, n, k, kind, parts=_parts(RESIDUAL))
    for kind in ("bf16", "int8")
    for shapes in LAYERS.values()
    for n, k in shapes
    for m in ROWS
)
# One shape of every size.
SHORT = tuple(
    case
    for case in BENCH
    if (case.n, case.k) in ((2048, 1024), (1024, 3072), (2048, 2048), (2048, 6144)) and case.m < 512
)


def draw_case(generator: torch.Generator) -> Case:
    """A random small case."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def pick(*choices: Any) -> Any:
        return choices[draw(0, len(choices) - 1)]

    activation = pick("none", "silu", "gelu_erf", "gelu_tanh", "relu", *GATED)
    m, k = pick(draw(0, 4), draw(5, 40), draw(41, 90)), pick(draw(0, 9), draw(10, 300), 1029)
    n = 2 * draw(0, 40) if activation in GATED else draw(0, 80)
    parts = {pick("", BIAS, PACKED), pick("", RESIDUAL), pick("", SCALE)} - {""}
    layout = pick("dense", "dense", "padded", "columns apart")
    kind = pick(*KIND_BYTES)
    return Case(
        m, n, k, kind, pick(F32, BF16), pick(F32, BF16), activation, frozenset(parts), layout
    )


def make_inputs(
    case: Case, generator: torch.Generator, isa: str | None = None
) -> tuple[PackedLinear, dict[str, Any]]:
    """Packed random weights, and the other arguments of ``linear`` by name."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    weight = normal(case.n, case.k) / max(case.k, 1) ** 0.5
    bias = normal(case.n)
    packed = pack_linear(
        weight, case.kind, bias if PACKED in case.parts else None, case.activation in GATED, isa
    )
    inputs: dict[str, Any] = {
        "x": _matrix(normal(case.m, 2 * case.k + 3), case.k, case.layout, case.x_dtype),
        "activation": case.activation,
        "out_dtype": case.out_dtype,
    }
    if BIAS in case.parts:
        inputs["bias"] = bias
    if RESIDUAL in case.parts:
        wide = normal(case.m, 2 * case.columns + 3)
        inputs["residual"] = _matrix(wide, case.columns, case.layout, case.out_dtype)
    if SCALE in case.parts:
        inputs["row_scale"] = torch.rand(case.m, generator=generator, device=weight.device) + 0.5
    return packed, inputs


def _matrix(wide: Tensor, columns: int, layout: str, dtype: torch.dtype) -> Tensor:
    wide = wide.to(dtype)
    if layout == "columns apart":
        return wide[:, : 2 * columns : 2]
    found = wide[:, :columns]
    return found.contiguous() if layout == "dense" else found


def exact_linear(packed: PackedLinear, inputs: dict[str, Any]) -> Tensor:
    """The definition in fp64, not rounded at the end."""
    weight, w_scale, bias = packed.unpack()
    given = {"bias": bias, "w_scale": w_scale, "kind": packed.kind} | inputs
    given |= {"out_dtype": torch.float64, "compute": torch.float64}
    return linear_reference(weight=weight, **given)


def plain_linear(
    packed: PackedLinear,
    unpacked: Unpacked,
    x: Tensor,
    activation: str,
    out_dtype: torch.dtype,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    row_scale: Tensor | None = None,
) -> Tensor:
    """What one writes in plain PyTorch, in the precision of the weights and of the output."""
    weight, w_scale, packed_bias = unpacked
    bias = bias if bias is not None else packed_bias
    if w_scale is not None:
        quantised = quantises(packed.kind, x.shape[0])
        steps, scale = quantize_rows(x, packed.kind) if quantised else (x.bfloat16().float(), None)
        z = steps @ weight.float().T
        z = (z if scale is None else z * scale[:, None]) * w_scale
        z = z.to(out_dtype)
    else:
        wide = torch.promote_types(weight.dtype, out_dtype)
        z = (x.to(weight.dtype).to(wide) @ weight.to(wide).T).to(out_dtype)
    if row_scale is not None:
        z = z * row_scale.to(out_dtype)[:, None]
    if bias is not None:
        z = z + bias.to(out_dtype)
    y = activate(z, activation)
    return y if residual is None else y + residual


def operations(case: Case) -> int:
    """Additions and multiplications of the product."""
    return 2 * case.m * case.n * case.k


def traffic(case: Case) -> int:
    """Bytes that the mathematics must move: weights and x read, the residual read, y written."""
    outputs = 1 + (RESIDUAL in case.parts)
    values = case.m * (
        case.k * case.x_dtype.itemsize + case.columns * case.out_dtype.itemsize * outputs
    )
    return case.n * case.k * KINDS[case.kind].itemsize + values


def written(case: Case) -> int:
    """Those of them that are written."""
    return case.m * case.columns * case.out_dtype.itemsize
