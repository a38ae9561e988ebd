"""The definition of ``gated_mlp``: a gated feed-forward layer (Shazeer, arXiv 2002.05202).

    h = act(x Wgᵀ + bg) · (x Wuᵀ + bu)        y = h Wdᵀ + bd + residual

Letters: M rows, K inputs, F hidden columns, N outputs. With int8 weights h is quantised by rows
like x; with bf16 weights it is rounded to bf16, with fp8 weights one or the other, see
``vlakern.ops.linear.reference``.
"""

import torch
from torch import Tensor

from vlakern.ops.linear.packed import Unpacked
from vlakern.ops.linear.reference import linear_reference

__all__ = ["HIDDEN", "gated_mlp_reference"]

# How h is kept between the two products, by the kind of the down projection.
FP32 = torch.float32
HIDDEN = {"bf16": torch.bfloat16, "fp32": FP32, "int8": FP32, "fp8": FP32}


def gated_mlp_reference(
    x: Tensor,
    gate_up: Unpacked,
    down: Unpacked,
    *,
    activation: str,
    residual: Tensor | None = None,
    kinds: tuple[str | None, str | None] = (None, None),
    out_dtype: torch.dtype | None = None,
    compute: torch.dtype | None = None,
) -> Tensor:
    """``y [M, N]``.

    Args:
        x: ``[M, K]``.
        gate_up: weight ``[2 F, K]``, gate rows before up rows.
        down: weight ``[N, F]``.
        activation: ``silu_gate`` or ``gelu_tanh_gate``.
        residual: ``[M, N]``.
        kinds: of the two weights, None for weights that round nothing.
        out_dtype: of y; x's by default.
        compute: precision of everything; fp32 by default, fp64 for fp64 x.
    """
    if compute is None:
        compute = torch.float64 if x.dtype == torch.float64 else torch.float32
    hidden = linear_reference(
        x,
        gate_up.weight,
        kind=kinds[0],
        w_scale=gate_up.scale,
        bias=gate_up.bias,
        activation=activation,
        out_dtype=compute if kinds[1] is None else HIDDEN[kinds[1]],
        compute=compute,
    )
    return linear_reference(
        hidden,
        down.weight,
        kind=kinds[1],
        w_scale=down.scale,
        bias=down.bias,
        residual=residual,
        out_dtype=out_dtype or x.dtype,
        compute=compute,
    )
