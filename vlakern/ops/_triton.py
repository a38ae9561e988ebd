"""What Triton kernels of several ops share."""

import triton
import triton.language as tl

__all__ = ["dot", "rounded"]


@triton.jit
def dot(a, b, acc, WIDEN: tl.constexpr):
    """a b + acc in fp32. WIDEN: Triton's interpreter multiplies the bits of bf16 as integers."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def rounded(x, dtype, WIDEN: tl.constexpr):
    """fp32 to ``dtype``, to nearest even. WIDEN: the interpreter would truncate to bf16."""
    if WIDEN and dtype == tl.bfloat16:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(dtype)
