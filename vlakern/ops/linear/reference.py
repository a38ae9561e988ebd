"""The definition of ``linear``, a matrix product with everything that follows it in a layer.

    z = row_scale · (x Wᵀ) + bias        y = act(z) + residual

A gated activation splits z's columns in two halves, gate and up: y = act(gate)·up + residual.
SiLU is z·σ(z); GELU is z·Φ(z) (Hendrycks and Gimpel, arXiv 1606.08415), ``gelu_tanh`` its form with
tanh(√(2/π)(z + 0.044715 z³)); the gated forms are those of Shazeer, arXiv 2002.05202.

``int8`` weights hold q with W = diag(s) q, s_n = max_k |W_nk| / 127, and quantise the rows of x
alike, x_m ≈ t_m p_m, so that (x Wᵀ)_mn = t_m s_n Σ_k p_mk q_nk, the sum an integer.

``fp8`` weights hold q in e4m3, s_n = max_k |W_nk| / 448, rounded to nearest even and saturated. Up
to ``FP8_ROWS`` rows, where reading weights takes longer than multiplying, x is rounded to bf16,
(x Wᵀ)_mn = s_n Σ_k x_mk q_nk; with more rows x is quantised as the weights are.

Letters: M rows, K inputs, N weight rows, C output columns: N, or N / 2 of a gated activation.
"""

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "ACTIVATIONS",
    "FP8_ROWS",
    "GATED",
    "KINDS",
    "LEVELS",
    "activate",
    "linear_reference",
    "quantises",
    "quantize_rows",
]

FP8 = torch.float8_e4m3fn
KINDS = {"bf16": torch.bfloat16, "fp32": torch.float32, "int8": torch.int8, "fp8": FP8}
LEVELS = {"int8": 127, "fp8": 448}  # the largest value that is stored
FP8_ROWS = 64  # an H200 multiplies 92 rows by fp8 weights in bf16 while it reads the weights
ACTIVATIONS = ("none", "silu", "gelu_erf", "gelu_tanh", "relu", "silu_gate", "gelu_tanh_gate")
GATED = ("silu_gate", "gelu_tanh_gate")
LEAST = 1e-30  # a row whose values are all smaller is quantised to zeros


def activate(z: Tensor, activation: str) -> Tensor:
    """The activation of ``z [M, N]``; a gated one returns ``[M, N / 2]``."""
    if activation in GATED:
        gate, up = z.chunk(2, -1)
        return activate(gate, activation.removesuffix("_gate")) * up
    if activation == "silu":
        return functional.silu(z)
    if activation == "gelu_erf":
        return functional.gelu(z)
    if activation == "gelu_tanh":
        return functional.gelu(z, approximate="tanh")
    return functional.relu(z) if activation == "relu" else z


def quantises(kind: str | None, rows: int) -> bool:
    """Whether the product quantises x, too."""
    return kind == "int8" or (kind == "fp8" and rows > FP8_ROWS)


def quantize_rows(x: Tensor, kind: str = "int8") -> tuple[Tensor, Tensor]:
    """``(p, t)``: integers of -127 to 127, or values of e4m3, in fp32 ``[M, K]``, and their scales
    fp32 ``[M]``.

    p = round(x · (127 / max |x|)), halves to even, and t = max |x| / 127, in fp32; with 448 and
    rounded to e4m3 for fp8. A row with a value that is not finite has the scale NaN.
    """
    wide, levels = x.float(), LEVELS[kind]
    if wide.shape[1] == 0:
        return wide, wide.new_zeros(wide.shape[0])
    most = wide.abs().amax(1)
    some = most > LEAST
    # A division of tensors: torch multiplies by the reciprocal when it divides a number.
    inverse = torch.where(some, torch.full_like(most, levels) / most, 0.0)
    scale = torch.where(some, most / torch.full_like(most, levels), 0.0) + (wide * 0).sum(1)
    steps = wide * inverse[:, None]
    steps = steps.round() if kind == "int8" else steps.clamp(-levels, levels).to(FP8).float()
    return torch.where(steps.abs() <= levels, steps, 0.0), scale


def linear_reference(
    x: Tensor,
    weight: Tensor,
    *,
    kind: str | None = None,
    w_scale: Tensor | None = None,
    bias: Tensor | None = None,
    activation: str = "none",
    residual: Tensor | None = None,
    row_scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    compute: torch.dtype | None = None,
) -> Tensor:
    """``y [M, C]``.

    Args:
        x: ``[M, K]``.
        weight: ``[N, K]``; q of int8 and fp8.
        kind: how the product takes x: ``bf16`` rounds it, ``int8`` quantises it, ``fp8`` does one
            or the other, else as it is.
        w_scale: s of int8 and fp8, ``[N]``.
        bias: ``[N]``.
        activation: one of ``ACTIVATIONS``.
        residual: ``[M, C]``.
        row_scale: ``[M]``.
        out_dtype: of y; x's by default.
        compute: precision of everything; fp32 by default, fp64 for fp64 x.
    """
    if compute is None:
        compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    if kind is not None and quantises(kind, x.shape[0]):
        steps, scale = quantize_rows(x, kind)
        z = steps.double() @ weight.double().T  # exact
        z = z.to(compute) * scale.to(compute)[:, None]
    else:
        taken = x.to(torch.bfloat16) if kind in ("bf16", "fp8") else x
        z = taken.to(compute) @ weight.to(compute).T
    if w_scale is not None:
        z = z * w_scale.to(compute)
    if row_scale is not None:
        z = z * row_scale.to(compute)[:, None]
    if bias is not None:
        z = z + bias.to(compute)
    y = activate(z, activation)
    if residual is not None:
        y = y + residual.to(compute)
    return y.to(out_dtype or x.dtype)
