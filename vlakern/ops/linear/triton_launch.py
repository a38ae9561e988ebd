"""Binds products to launches of the Triton kernels, or to torch's matmul where rows are many."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from vlakern import env
from vlakern.errors import InputError, Unsupported
from vlakern.ops import _torch
from vlakern.ops.linear.packed import PackedLinear
from vlakern.ops.linear.reference import GATED, KINDS, LEVELS, quantises
from vlakern.ops.linear.triton_kernels import finish_kernel, product_kernel, quantize_kernel
from vlakern.ops.linear.triton_plan import Plan, Sizes, plan_linear

__all__ = [
    "EXACT",
    "Product",
    "Quantised",
    "Run",
    "Sums",
    "flags",
    "in_turn",
    "launches",
    "leave_sums",
    "lines",
    "plan_of",
    "scratch_bytes",
    "take",
    "widen",
]

Run = Callable[[], Any]
LINE = 256  # bytes: parts of a workspace begin at multiples
LONGEST = 1 << 17  # K whose int8 products int32 can sum
EXACT: dict[str, Any] = {"enable_fp_fusion": False}  # as the reference rounds


class Product(NamedTuple):
    """One product and what follows it; shapes are checked by the caller."""

    x: Tensor  # [M, K]
    weights: PackedLinear  # N rows, K
    out: Tensor  # [M, C]
    activation: str = "none"
    bias: Tensor | None = None  # [N], or [M, N]
    residual: Tensor | None = None  # [M, C]
    row_scale: Tensor | None = None  # [M]


class Quantised(NamedTuple):
    """Rows of x in the kind of the weights."""

    steps: Tensor  # [M, K padded]
    scale: Tensor  # [M]


class Sums(NamedTuple):
    """Sums of products, before anything that follows them."""

    z: Tensor  # [S, M, N]
    x_scale: Tensor | None  # [M]


def plan_of(rows: int, weights: PackedLinear, activation: str, item: int = 2) -> Plan:
    """The plan of a product on the device of its weights; ``item`` says of x how wide it is, which
    changes no size but that of the stages."""
    gate = activation in GATED
    processors = _torch.processors(weights.data.device)
    sizes = (rows, weights.columns, weights.k, weights.kind, gate, processors, item)
    return plan_linear(Sizes(*sizes))


def scratch_bytes(rows: int, weights: PackedLinear, activation: str, sums: bool = False) -> int:
    """Bytes of workspace: quantised rows, their scales, and sums on their way or to be left."""
    plan = plan_of(rows, weights, activation)
    return sum(map(lines, _scratch(rows, weights, plan, sums)))


def _scratch(rows: int, weights: PackedLinear, plan: Plan, always: bool) -> tuple[int, int, int]:
    if rows == 0 or weights.n == 0:
        return 0, 0, 0
    quantised = rows * weights.matrix().shape[1] if plan.quantised else 0
    sums = 4 * plan.splits * rows * weights.n if plan.two_steps or always else 0
    return quantised, 4 * rows if plan.quantised else 0, sums


def lines(size: int) -> int:
    """A size in whole lines [bytes]."""
    return -(-size // LINE) * LINE


def take(workspace: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Parts of a workspace, each at the beginning of a line."""
    parts, begin = [], 0
    for size in sizes:
        parts.append(workspace[begin : begin + size])
        begin += lines(size)
    if begin > workspace.numel():
        raise InputError(
            f"linear: workspace must be contiguous and hold {begin} bytes, got {workspace.numel()}"
        )
    return parts


def launches(
    p: Product, workspace: Tensor | None = None, quantised: Quantised | None = None
) -> list[Run]:
    """The launches of one product, in order.

    Args:
        p: the product.
        workspace: uint8 of ``scratch_bytes``; one is made if none is given.
        quantised: its rows, where another kernel quantises them.
    """
    _check(p)
    if p.out.numel() == 0:
        return []
    plan = plan_of(p.x.shape[0], p.weights, p.activation, p.x.element_size())
    if plan.two_steps:
        runs, sums = leave_sums(p, workspace, quantised)
        return [*runs, _finish(p, sums)]
    runs, quantised = _operands(p, _parts(p, workspace)[:2], quantised)
    return [*runs, _multiply(p, plan, quantised, None)]


def leave_sums(
    p: Product, workspace: Tensor | None = None, quantised: Quantised | None = None
) -> tuple[list[Run], Sums]:
    """The launches that leave sums of products to another kernel, and where."""
    _check(p)
    rows, weights = p.x.shape[0], p.weights
    plan = plan_of(rows, weights, p.activation, p.x.element_size())
    *parts, sums = _parts(p, workspace, always=True)
    runs, quantised = _operands(p, parts, quantised)
    z = sums.view(torch.int32 if weights.kind == "int8" else torch.float32)
    if plan.library:
        narrow = p.out.dtype == weights.matrix().dtype
        z = z.view(p.out.dtype) if narrow else z
        z = z[: rows * weights.n].view(1, rows, weights.n)
        runs.append(partial(_library, p.x, weights, z[0]))
    else:
        z = z.view(plan.splits, rows, weights.n)
        runs.append(_multiply(p, plan, quantised, z))
    return runs, Sums(z, None if quantised is None else quantised.scale)


def _check(p: Product) -> None:
    """What the kernels do not cover."""
    if p.weights.kind == "int8" and p.weights.k > LONGEST:
        raise Unsupported(f"int8 sums hold K up to {LONGEST}, got {p.weights.k}")
    given = {"x": p.x, "out": p.out, "residual": p.residual, "bias": p.bias}
    for name, one in (given | {"row_scale": p.row_scale}).items():
        if one is not None and one.shape[-1] > 1 and one.stride(-1) != 1:
            raise InputError(
                f"linear: {name} must have adjacent columns, got a stride of {one.stride(-1)}"
            )


def _parts(p: Product, workspace: Tensor | None, always: bool = False) -> list[Tensor]:
    """Memory for quantised rows, their scales, and sums."""
    rows, weights = p.x.shape[0], p.weights
    sizes = _scratch(rows, weights, plan_of(rows, weights, p.activation), always)
    if workspace is None:
        workspace = torch.empty(sum(map(lines, sizes)), dtype=torch.uint8, device=p.x.device)
    return take(workspace, sizes)


def _operands(
    p: Product, parts: Sequence[Tensor], quantised: Quantised | None
) -> tuple[list[Run], Quantised | None]:
    """The launch that quantises x, unless that is done or not needed."""
    if quantised is not None or not quantises(p.weights.kind, p.x.shape[0]):
        return [], quantised
    steps = parts[0].view(KINDS[p.weights.kind]).view(p.x.shape[0], -1)
    quantised = Quantised(steps, parts[1].view(torch.float32))
    return [_quantize(p, quantised)], quantised


def widen() -> bool:
    """Triton's interpreter has no arithmetic of bf16, and truncates to it."""
    return env.triton_interpret()


def _quantize(p: Product, to: Quantised) -> Run:
    width = to.steps.shape[1]
    block = triton.next_power_of_2(max(width, 16))
    arguments = (p.x, *to, p.x.shape[1], width, p.x.stride(0))
    options = {"LEVELS": LEVELS[p.weights.kind], "BLOCK": block, "WIDEN": widen()}
    warps = min(max(block // 512, 1), 16)
    return partial(quantize_kernel[(len(p.x),)], *arguments, **options, num_warps=warps, **EXACT)


def _library(x: Tensor, weights: PackedLinear, z: Tensor) -> None:
    """x Wᵀ in z's precision from operands in the weights'."""
    weight = weights.matrix()[:, : weights.k]
    x = x.to(weight.dtype)
    if z.dtype == weight.dtype:
        torch.mm(x, weight.T, out=z)
    elif x.device.type == "cuda" and weight.dtype != torch.float32:
        torch.mm(x, weight.T, out_dtype=z.dtype, out=z)
    else:
        z.copy_(x.float() @ weight.float().T)


def _multiply(p: Product, plan: Plan, quantised: Quantised | None, sums: Tensor | None) -> Run:
    """The product, with what follows it unless it is to leave sums."""
    rows, weights, matrix = p.x.shape[0], p.weights, p.weights.matrix()
    split = sums is not None
    columns = weights.n if split else weights.columns
    tiles = triton.cdiv(rows, plan.block_m)
    out = p.out if sums is None else sums
    x = p.x if quantised is None else quantised.steps
    x_scale = None if quantised is None else quantised.scale
    tensors, strides = _epilogue(p, x_scale)
    arguments = (x, matrix, *tensors, out, rows, columns, weights.k, plan.chunk, tiles)
    strides = (x.stride(0), matrix.stride(0), *strides, p.out.stride(0))
    options: dict[str, Any] = {
        **flags(p, x_scale),
        "KIND": "bf16" if weights.kind == "fp8" and quantised is None else weights.kind,
        "GATED": weights.gate and not split,
        "SPLIT": split,
        "EVEN_K": weights.k % plan.chunk == 0,
        "BLOCK_M": plan.block_m,
        "BLOCK_N": plan.block_n,
        "BLOCK_K": plan.block_k,
        "num_warps": plan.warps,
        "num_stages": plan.stages,
    }
    grid = (tiles * triton.cdiv(columns, plan.block_n), plan.splits)
    return partial(product_kernel[grid], *arguments, *strides, **options)


def _finish(p: Product, sums: Sums) -> Run:
    splits, rows, width = sums.z.shape
    block = min(triton.next_power_of_2(p.weights.columns), 512)
    tensors, strides = _epilogue(p, sums.x_scale)
    sizes = (width, p.weights.columns, splits, rows * width, *strides, p.out.stride(0))
    options = flags(p, sums.x_scale) | {"GATED": p.weights.gate, "BLOCK": block}
    grid = (rows, triton.cdiv(p.weights.columns, block))
    return partial(finish_kernel[grid], sums.z, *tensors, p.out, *sizes, **options, num_warps=4)


def _epilogue(p: Product, x_scale: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    """Scales, bias and residual, absent ones as pointers that nothing follows; their strides."""
    w_scale, own_bias = p.weights.sections()[1:]
    bias = p.bias if p.bias is not None else own_bias
    given = (x_scale, w_scale, p.row_scale, bias, p.residual)
    bias_stride = bias.stride(0) if bias is not None and bias.ndim == 2 else 0
    residual_stride = p.residual.stride(0) if p.residual is not None else 0
    tensors = tuple(p.out if one is None else one for one in given)
    return tensors, (bias_stride, residual_stride)


def flags(p: Product, x_scale: Tensor | None) -> dict[str, Any]:
    return {
        "X_SCALED": x_scale is not None,
        "W_SCALED": p.weights.kind in LEVELS,
        "ROW_SCALED": p.row_scale is not None,
        "BIAS": p.bias is not None or p.weights.has_bias,
        "RESIDUAL": p.residual is not None,
        "ACTIVATION": p.activation,
        "WIDEN": widen(),
        **EXACT,
    }


def in_turn(runs: Sequence[Run], where: Tensor) -> Run:
    """One call of them all, on the device of ``where``."""

    def run() -> None:
        with torch.cuda.device_of(where):
            for each in runs:
                each()

    return run
