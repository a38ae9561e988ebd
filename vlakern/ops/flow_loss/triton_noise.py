"""Noise and flow time from a counter in Triton: the bits of csrc/common/philox.h.

The same polynomials in the same order, fused where they fuse: kernels that use these functions must
be compiled with ``enable_fp_fusion=False``.
"""

import triton
import triton.language as tl

__all__ = ["draw", "drawn_tau"]


@triton.jit
def words(seed, row, stream, block):
    """Philox-4x32-10 of counter (block, stream, row's halves), see philox.py."""
    a = block.to(tl.uint32)
    b = a * 0 + stream
    c = a * 0 + (row & 0xFFFFFFFF).to(tl.uint32)
    d = a * 0 + ((row >> 32) & 0xFFFFFFFF).to(tl.uint32)
    key0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    key1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(10):  # type: ignore
        high0 = tl.umulhi(a, 0xD2511F53 + a * 0)
        low0 = a * 0xD2511F53
        high1 = tl.umulhi(c, 0xCD9E8D57 + c * 0)
        low1 = c * 0xCD9E8D57
        a = high1 ^ b ^ key0
        b = low1
        c = high0 ^ d ^ key1
        d = low0
        key0 = key0 + 0x9E3779B9
        key1 = key1 + 0xBB67AE85
    return a, b, c, d


@triton.jit
def constant(like, value):
    return tl.full(like.shape, value, tl.float32)


@triton.jit
def logarithm(x):
    """vec_log of csrc/common/vec_math.h, bit by bit."""
    total = x.to(tl.int32, bitcast=True) + (0x3F800000 - 0x3F3504F3)
    n = ((total >> 23) - 127).to(tl.float32)
    f = ((total & 0x7FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    square = f * f
    y = tl.fma(constant(f, -0.078590296), f, constant(f, 0.12881424))
    y = tl.fma(y, f, constant(f, -0.13128868))
    y = tl.fma(y, f, constant(f, 0.1418123))
    y = tl.fma(y, f, constant(f, -0.16624546))
    y = tl.fma(y, f, constant(f, 0.20002285))
    y = tl.fma(y, f, constant(f, -0.2500081))
    y = tl.fma(y, f, constant(f, 0.33333316))
    y = y * f * square
    y = tl.fma(n, constant(f, 1.42860677e-06), y)
    y = tl.fma(constant(f, -0.5), square, y)
    return tl.fma(n, constant(f, 0.693145752), f + y)


@triton.jit
def normals(radius, turn):
    """box_muller of csrc/common/philox.h, bit by bit."""
    u = ((radius >> 8) + 1).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08
    length = tl.sqrt_rn(-2.0 * logarithm(u))
    angle = (turn >> 8).to(tl.int32)
    half = (angle + 4194304) >> 23
    f = angle.to(tl.float32) * 1.1920928955078125e-07 - half.to(tl.float32)
    length = (length.to(tl.int32, bitcast=True) ^ (half << 31)).to(tl.float32, bitcast=True)
    t = f * f
    cos = tl.fma(constant(t, -0.024396716), t, constant(t, 0.23493756))
    cos = tl.fma(cos, t, constant(t, -1.3352121))
    cos = tl.fma(cos, t, constant(t, 4.058709))
    cos = tl.fma(cos, t, constant(t, -4.934802))
    cos = tl.fma(cos, t, constant(t, 1.0))
    sin = tl.fma(constant(t, 0.0776594), t, constant(t, -0.5982922))
    sin = tl.fma(sin, t, constant(t, 2.5500777))
    sin = tl.fma(sin, t, constant(t, -5.1677103))
    sin = tl.fma(sin, t, constant(t, 3.1415927))
    return length * cos, length * (f * sin)


@triton.jit
def draw(seed, row, block, HAS_NOISE: tl.constexpr):
    """Four normals of each counter; none are needed where noise is given."""
    if HAS_NOISE:
        zero = tl.zeros(block.shape, tl.float32)
        return zero, zero, zero, zero
    w0, w1, w2, w3 = words(seed, row, 0, block)
    z0, z1 = normals(w0, w1)
    z2, z3 = normals(w2, w3)
    return z0, z1, z2, z3


@triton.jit
def drawn_tau(seed, row, LAW: tl.constexpr, ALPHA: tl.constexpr, S: tl.constexpr):
    w0, w1, _, _ = words(seed, row, 1, tl.zeros((1,), tl.int32))
    u = (w0 >> 8).to(tl.int32).to(tl.float64) * 5.9604644775390625e-08
    if LAW == 1:
        s = tl.full((1,), S, tl.float64)
        power = tl.exp(tl.log(tl.where(u > 0, u, 1.0)) / tl.full((1,), ALPHA, tl.float64))
        u = (s - tl.where(u > 0, power, 0.0)) / s
    if LAW == 2:
        turn = (w1 >> 8).to(tl.int32).to(tl.float64) * (6.283185307179586 / 16777216)
        z = tl.sqrt(-2.0 * tl.log(u + 5.9604644775390625e-08)) * tl.cos(turn)
        u = 1.0 / (1.0 + tl.exp(-z))
    return u.to(tl.float32)
