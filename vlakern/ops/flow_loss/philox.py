"""Noise from a counter, as a definition: Philox-4x32-10 and Box-Muller.

Philox-4x32-10 is that of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
1, 2, 3" (SC 2011). A draw is addressed by (seed, row, stream, block): the key is the seed's low and
high half, the counter is (block, stream, row's low half, row's high half). Words w0 w1 w2 w3 give

    u = ((w0 >> 8) + 1) / 2^24 of (0, 1]      t = (w1 >> 8) / 2^24 of [0, 1)
    z0 = sqrt(-2 ln u) cos(2π t)              z1 = sqrt(-2 ln u) sin(2π t)

and the same of w2 and w3 gives z2 and z3. u and t are exact in fp32, so that backends differ by the
rounding of ln, sqrt, cos and sin alone. The largest normal is sqrt(48 ln 2) = 5.77.

Letters: R rows, E elements of a row.
"""

import math

import torch
from torch import Tensor

__all__ = ["BLOCK", "NOISE", "TAU", "box_muller", "noise_reference", "philox4x32", "row_words"]

NOISE, TAU = 0, 1  # streams
BLOCK = 64  # elements: 16 counters of four words
LANES = 16

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox4x32(counter: Words, key: tuple[int, int], rounds: int = 10) -> Words:
    """Four random words [0, 2^32), int64, of each counter of four words, int64."""
    a, b, c, d = counter
    key0, key1 = key
    for _ in range(rounds):
        # int64 products wrap modulo 2^64, which leaves all of their bits in place.
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (
            ((second >> 32) & _MASK) ^ b ^ key0,
            second & _MASK,
            ((first >> 32) & _MASK) ^ d ^ key1,
            first & _MASK,
        )
        key0, key1 = (key0 + _WEYL[0]) & _MASK, (key1 + _WEYL[1]) & _MASK
    return a, b, c, d


def row_words(seed: int, rows_R: Tensor, stream: int, blocks: int) -> Words:
    """The words of blocks 0 to ``blocks`` - 1 of every row, each ``[R, blocks]``."""
    block = torch.arange(blocks, device=rows_R.device).expand(len(rows_R), blocks)
    rows = rows_R[:, None].expand(-1, blocks)
    counter = (block, torch.full_like(block, stream), rows & _MASK, (rows >> 32) & _MASK)
    return philox4x32(counter, (seed & _MASK, seed >> 32))


def box_muller(radius: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
    """Two normals of each pair of words, fp64."""
    u = ((radius >> 8) + 1).double() * 2.0**-24
    angle = (turn >> 8).double() * (2.0**-24 * 2 * math.pi)
    length = (-2.0 * u.log()).sqrt()
    return length * angle.cos(), length * angle.sin()


def noise_reference(seed: int, rows_R: Tensor, elements: int, dtype: torch.dtype) -> Tensor:
    """Normals ``[R, E]``, computed in fp64 and rounded once.

    Element e is word ``e // 16 % 4`` of counter ``16 · (e // 64) + e % 16``: vector units of up to
    sixteen lanes write each word's normals side by side.
    """
    groups = -(-elements // BLOCK)
    words = row_words(seed, rows_R, NOISE, groups * LANES)
    normals = (*box_muller(*words[:2]), *box_muller(*words[2:]))
    # [R, groups, word, lane]
    z = torch.stack([one.unflatten(1, (groups, LANES)) for one in normals], dim=2)
    return z.flatten(1)[:, :elements].to(dtype)
