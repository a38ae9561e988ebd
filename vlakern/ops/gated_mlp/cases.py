"""The cases of ``gated_mlp``, for tests and benchmarks alike.

Real ones: rethink-2b (2048 with 6144, 1024 with 3072), pi0 (2048 with 16384, 1024 with 4096),
SmolVLA (720 with 2048), metaworld-small. Letters: M rows, K inputs, F hidden columns, N outputs.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlakern.ops.gated_mlp.reference import gated_mlp_reference
from vlakern.ops.linear.cases import KIND_BYTES
from vlakern.ops.linear.packed import PackedLinear, pack_linear
from vlakern.ops.linear.reference import KINDS, activate

__all__ = [
    "BENCH",
    "CASES",
    "REDUCED",
    "Case",
    "draw_case",
    "exact_gated_mlp",
    "make_inputs",
    "operations",
    "plain_gated_mlp",
    "traffic",
    "written",
]

F32, BF16 = torch.float32, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """One call: sizes, kind of both weights, dtype of x and y, and what is optional in it."""

    m: int
    k: int
    f: int
    n: int
    kind: str = "bf16"
    dtype: torch.dtype = BF16
    activation: str = "silu_gate"
    bias: bool = False
    residual: bool = True

    def __str__(self) -> str:
        """An id such as ``M17-K1024-F3072-N1024-bf16-bf16-silu_gate``."""
        dtype = {F32: "fp32", BF16: "bf16"}[self.dtype]
        words = [f"M{self.m}-K{self.k}-F{self.f}-N{self.n}", self.kind, dtype, self.activation]
        return "-".join(words + ["bias"] * self.bias + ["residual"] * self.residual)


CASES = (
    Case(1, 64, 96, 64),
    Case(17, 128, 200, 128, activation="gelu_tanh_gate"),
    Case(50, 66, 70, 34, bias=True, residual=False),
    Case(130, 96, 560, 48),
    Case(13, 33, 17, 50, "fp32", F32, bias=True),
    Case(40, 128, 192, 128, "fp32", F32, "gelu_tanh_gate"),
    Case(9, 64, 80, 64, "fp32", BF16, residual=False),
    Case(17, 100, 120, 100, "int8", BF16, bias=True),
    Case(51, 72, 300, 40, "int8", F32, "gelu_tanh_gate"),
    Case(0, 8, 8, 8),
)
# For GPUs: every kind and way, small enough for Triton's interpreter.
REDUCED = (
    Case(1, 64, 96, 64),
    Case(17, 66, 70, 34, activation="gelu_tanh_gate", bias=True, residual=False),
    Case(70, 40, 50, 30, dtype=F32),
    Case(600, 40, 50, 30),
    Case(13, 33, 17, 50, "fp32", F32, bias=True),
    Case(17, 100, 120, 100, "int8", BF16, bias=True),
    Case(51, 72, 300, 40, "int8", F32, "gelu_tanh_gate"),
    Case(17, 64, 110, 40, "fp8", BF16, bias=True),
    Case(70, 64, 110, 40, "fp8", BF16, "gelu_tanh_gate"),
    Case(0, 8, 8, 8),
)
# (K, F, activation) of rethink-2b, its expert, the wide one, pi0 and its expert, SmolVLA and its
LAYERS = (
    (2048, 6144, "silu_gate"),
    (1024, 3072, "silu_gate"),
    (1024, 6144, "silu_gate"),
    (2048, 16384, "gelu_tanh_gate"),
    (1024, 4096, "gelu_tanh_gate"),
    (960, 2560, "silu_gate"),
    (720, 2048, "silu_gate"),
)
BENCH = tuple(
    Case(m, k, f, k, kind, activation=activation)
    for kind in ("bf16", "int8")
    for k, f, activation in LAYERS
    for m in (1, 17, 50, 220, 512)
)


def draw_case(generator: torch.Generator) -> Case:
    """A random small case."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    def pick(*choices: Any) -> Any:
        return choices[draw(0, len(choices) - 1)]

    m, k = pick(draw(0, 4), draw(5, 70)), pick(draw(1, 9), draw(10, 200))
    f, n = pick(draw(1, 9), draw(10, 150)), draw(1, 80)
    kind, activation = pick(*KIND_BYTES), pick("silu_gate", "gelu_tanh_gate")
    bias, residual = pick(False, True), pick(False, True)
    return Case(m, k, f, n, kind, pick(F32, BF16), activation, bias, residual)


def make_inputs(
    case: Case, generator: torch.Generator, isa: str | None = None
) -> tuple[PackedLinear, PackedLinear, dict[str, Any]]:
    """Packed random weights, and the other arguments of ``gated_mlp`` by name."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    biases = (normal(2 * case.f), normal(case.n)) if case.bias else (None, None)
    first, second = normal(2 * case.f, case.k) / case.k**0.5, normal(case.n, case.f) / case.f**0.5
    gate_up = pack_linear(first, case.kind, biases[0], gate=True, isa=isa)
    down = pack_linear(second, case.kind, biases[1], isa=isa)
    x = normal(case.m, case.k).to(case.dtype)
    inputs: dict[str, Any] = {"x": x, "activation": case.activation}
    if case.residual:
        inputs["residual"] = normal(case.m, case.n).to(case.dtype)
    return gate_up, down, inputs


def exact_gated_mlp(gate_up: PackedLinear, down: PackedLinear, inputs: dict[str, Any]) -> Tensor:
    """The definition in fp64, not rounded at the end."""
    return gated_mlp_reference(
        gate_up=gate_up.unpack(),
        down=down.unpack(),
        kinds=(gate_up.kind, down.kind),
        out_dtype=torch.float64,
        compute=torch.float64,
        **inputs,
    )


def plain_gated_mlp(
    gate_up: PackedLinear,
    down: PackedLinear,
    x: Tensor,
    activation: str,
    residual: Tensor | None = None,
) -> Tensor:
    """What one writes in plain PyTorch, in x's dtype; scales are multiplied out."""

    def product(x: Tensor, packed: PackedLinear) -> Tensor:
        weight, scale, bias = packed.unpack()
        wide = weight if scale is None else weight.float() * scale[:, None]
        wide = wide.to(x.dtype)
        z = x @ wide.T
        return z if bias is None else z + bias.to(x.dtype)

    y = product(activate(product(x, gate_up), activation), down)
    return y if residual is None else y + residual


def operations(case: Case) -> int:
    """Additions and multiplications of the products."""
    return 2 * case.m * case.f * (2 * case.k + case.n)


def traffic(case: Case) -> int:
    """Bytes that the mathematics must move: weights and x read, the residual read, y written."""
    values = case.m * (case.k + case.n * (1 + case.residual)) * case.dtype.itemsize
    return case.f * (2 * case.k + case.n) * KINDS[case.kind].itemsize + values


def written(case: Case) -> int:
    """Those of them that are written."""
    return case.m * case.n * case.dtype.itemsize
