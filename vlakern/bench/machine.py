"""What this machine can do at most: the roofs under which stages are measured."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vlakern.bench.roofline import PASSED_ON
from vlakern.errors import Unsupported
from vlakern.ops import _native
from vlakern.ops.linear.limits import ColdMemory, peak_rate
from vlakern.testing.timing import clock_of, copy_bandwidth, interleave

__all__ = ["Limits", "measure"]

PASSES = 10
READ = 64 << 20  # bytes of one pass over memory
SIDE = 8192  # of the square product that finds a GPU's peak


@dataclass(frozen=True)
class Limits:
    """The best of ten passes.

    Attributes:
        bandwidth: of reading memory [byte/s].
        peaks: operations per second in each dtype.
        how: what was measured, in words.
        drift: largest relative difference between two measurements that were joined.
    """

    bandwidth: float
    peaks: dict[str, float]
    how: str
    drift: float = 0.0

    def joined(self, later: "Limits") -> "Limits":
        """The best of both: a machine that was disturbed once must not make floors look near."""
        pairs = [(self.bandwidth, later.bandwidth)]
        pairs += [(peak, later.peaks[name]) for name, peak in self.peaks.items()]
        drift = max(1.0 - min(pair) / max(pair) for pair in pairs if max(pair) > 0)
        best = dict(zip(self.peaks, (max(pair) for pair in pairs[1:]), strict=True))
        return Limits(max(pairs[0]), best, self.how, max(drift, self.drift, later.drift))

    def covers(self, dtype: str) -> bool:
        """Whether a floor for weights of ``dtype`` can be computed."""
        known = all(self.peaks.get(one, 0.0) > 0 for one in (dtype, PASSED_ON[dtype]))
        return known and self.bandwidth > 0


def measure(dtypes: Sequence[str], device: str = "cpu") -> Limits:
    """Measures with as many threads as torch uses.

    Args:
        dtypes: those of weights; what is passed on between their products is measured with them.

    Raises:
        Unsupported: there is no native module to measure a CPU with.
    """
    wanted = sorted({*dtypes, *(PASSED_ON[one] for one in dtypes)})
    if device != "cpu":
        return _measure_gpu([one for one in wanted if one not in ("int8", "fp8")], device)
    missing = _native.missing()
    if missing is not None:
        raise Unsupported(f"the machine's limits are measured by native code: {missing}")
    memory = ColdMemory()
    bandwidth = max(memory.read(READ) for _ in range(PASSES))
    peaks = {one: peak_rate(one, PASSES) for one in wanted}
    words = f"best of {PASSES} passes, {torch.get_num_threads()} threads: memory read"
    return Limits(bandwidth, peaks, f"{words}, products in registers")


def _measure_gpu(dtypes: Sequence[str], device: str) -> Limits:
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    peaks = {one: _product_rate(kinds[one], device) for one in dtypes}
    words = f"best of {PASSES} passes: copy of memory, products of {SIDE} x {SIDE}"
    return Limits(copy_bandwidth(device), peaks, words)


def _product_rate(dtype: torch.dtype, device: str) -> float:
    a, b = (torch.randn(SIDE, SIDE, dtype=dtype, device=device) for _ in range(2))
    product = {"product": lambda: a @ b}
    return 2.0 * SIDE**3 / interleave(product, PASSES, clock=clock_of(device))["product"].best
