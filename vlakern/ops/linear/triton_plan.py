"""Which tiles and how many parts of K a product gets on a GPU: a pure function of sizes."""

from dataclasses import dataclass

from vlakern.ops.linear.reference import KINDS, quantises

__all__ = ["LARGE", "Plan", "Sizes", "plan_linear"]

LARGE = 512  # rows above which the library multiplies weights that are not quantised
SHARED = 96 << 10  # bytes of shared memory that a program may have on every GPU from sm_80 on
MOST_PARTS = 8  # every part writes and reads M N fp32 values once more


@dataclass(frozen=True)
class Sizes:
    """One call: M rows, C output columns, K inputs, and the multiprocessors that share it.

    ``item`` are the bytes of an element of x, which waits in shared memory as it is stored.
    """

    m: int
    columns: int
    k: int
    kind: str
    gate: bool
    processors: int
    item: int = 2

    @property
    def n(self) -> int:
        """Weight rows."""
        return 2 * self.columns if self.gate else self.columns


@dataclass(frozen=True)
class Plan:
    """How one call runs.

    Attributes:
        library: torch multiplies, and a kernel does what follows.
        quantised: x is quantised first.
        splits: parts of K, each a program of its own, added by a second kernel in their order.
        chunk: K of a part.
    """

    library: bool
    quantised: bool
    block_m: int
    block_n: int
    block_k: int
    splits: int
    chunk: int
    warps: int
    stages: int

    @property
    def two_steps(self) -> bool:
        """Whether sums go through memory before what follows the product."""
        return self.library or self.splits > 1


def plan_linear(s: Sizes) -> Plan:
    """The plan of a product.

    Few rows: reading the weights is what takes time, so that tiles are as large as still gives
    every multiprocessor one, and K is cut where even the smallest do not. Many rows: tiles that
    reuse what they read.
    """
    quantised = quantises(s.kind, s.m)
    library = s.m > LARGE and s.kind in ("bf16", "fp32")
    block_m, block_n, warps = _tile(s)
    block_k = _block_k(s, quantised)
    tiles = -(-s.m // block_m) * -(-s.columns // block_n)
    wanted = 1 if library else min(s.processors // max(tiles, 1), MOST_PARTS, s.k // (4 * block_k))
    steps = max(-(-s.k // block_k), 1)
    chunk = -(-steps // max(wanted, 1)) * block_k
    splits = max(-(-s.k // chunk), 1)
    # A split product multiplies gate and up as one matrix.
    weights = block_n * (2 if s.gate and splits == 1 else 1)
    least = KINDS[s.kind].itemsize if quantised or s.kind != "fp8" else 2
    stage = (block_m * (least if quantised else max(least, s.item)) + weights * least) * block_k
    stages = max(2, min(4, SHARED // stage))
    return Plan(library, quantised, block_m, block_n, block_k, splits, chunk, warps, stages)


def _tile(s: Sizes) -> tuple[int, int, int]:
    """Rows of x, rows of weights, and warps."""
    rows = 16 if s.m <= 16 else 32 if s.m <= 32 else 64
    wide = 4 if rows > 32 else 2
    if s.kind == "fp32":
        choices = ((min(rows, 32), 32, 4), (16, 16, 2))
    elif s.m <= 64:
        choices = ((rows, 64, 4), (rows, 32, wide), (rows, 16, wide))
    elif s.gate:
        choices = ((128, 64, 8), (64, 64, 4))
    else:
        choices = ((128, 128, 8), (64, 128, 4), (64, 64, 4))
    for block_m, block_n, warps in choices:
        if -(-s.m // block_m) * -(-s.columns // block_n) >= s.processors:
            return block_m, block_n, warps
    return choices[-1]


def _block_k(s: Sizes, quantised: bool) -> int:
    if s.kind == "fp32":
        return 32
    if s.m <= 64:
        return 256 if quantised else 128
    return 128 if quantised else 64
