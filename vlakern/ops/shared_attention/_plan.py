"""Which tiles, warps and splits the Triton kernels use: pure functions of a call's sizes."""

from dataclasses import dataclass

__all__ = ["BackwardPlan", "Plan", "Sizes", "plan_backward", "plan_forward", "width"]

MOST_SPLITS = 16


@dataclass(frozen=True)
class Sizes:
    """What a plan may depend on: nothing that has to be read from a GPU.

    Attributes:
        documents, max_q, max_keys: as in ``KvEnd``.
        group: query heads that read one key-value head.
        groups: key-value heads.
        head_dim: width of a head.
        item: bytes of one element of q.
        processors: multiprocessors of the GPU.
    """

    documents: int
    max_q: int
    max_keys: int
    group: int
    groups: int
    head_dim: int
    item: int
    processors: int


@dataclass(frozen=True)
class Plan:
    """One forward pass: ``tiles`` per document, each over ``splits`` chunks of the keys.

    Attributes:
        block_m: rows of a tile; a row is one query of one head of the group.
        block_n: keys that a program takes at a time.
        tiles: of the longest document.
        splits: chunks of the key range; 1 needs no second kernel.
        chunk: keys of a chunk, a multiple of ``block_n``.
        warps, stages: Triton's ``num_warps`` and ``num_stages``.
    """

    block_m: int
    block_n: int
    tiles: int
    splits: int
    chunk: int
    warps: int
    stages: int


@dataclass(frozen=True)
class BackwardPlan:
    """Tiles of the two backward kernels: ``dq`` per query tile and ``dkv`` per key tile."""

    dq_m: int
    dq_n: int
    dkv_m: int
    dkv_n: int
    warps: int
    stages: int


def width(head_dim: int) -> int:
    """The tile width of a head: a power of two, 16 or more; what lies beyond is masked.

    72 takes 128: the padding costs arithmetic, never memory traffic, and spares a second tile in
    every product of every kernel.
    """
    return max(16, 1 << (head_dim - 1).bit_length())


def plan_forward(s: Sizes) -> Plan:
    """Tiles by width, then chunks of the keys while the GPU has idle multiprocessors."""
    rows, wide = s.max_q * s.group, width(s.head_dim)
    if s.item == 4:  # products of fp32 run outside the tensor cores and live in registers
        most_m, block_n = 32, 32 if wide <= 128 else 16
    else:
        most_m, block_n = (128, 64) if wide <= 128 else (64, 32)
    block_m = min(most_m, max(16, 1 << max(rows - 1, 0).bit_length()))
    tiles, blocks = _up(rows, block_m), max(1, _up(s.max_keys, block_n))
    programs = max(1, s.documents * tiles * s.groups)
    wanted = max(1, min(s.processors // programs, blocks, MOST_SPLITS))
    chunk = _up(blocks, wanted) * block_n
    warps = 8 if block_m == 128 or wide > 128 else 4
    return Plan(block_m, block_n, tiles, _up(blocks * block_n, chunk), chunk, warps, 2)


def plan_backward(head_dim: int, item: int) -> BackwardPlan:
    """Tiles whose accumulators and operands stay in registers and in 99 KB of shared memory."""
    wide = width(head_dim)
    if item == 4:
        return BackwardPlan(16, 16, 16, 16, 4 if wide <= 64 else 8, 1)
    if wide > 128:
        return BackwardPlan(32, 32, 32, 32, 8, 1)
    return BackwardPlan(64, 64, 32, 64, 4 if wide <= 64 else 8, 2)


def _up(number: int, block: int) -> int:
    """How many blocks hold so many."""
    return -(-number // block)
