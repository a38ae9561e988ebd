"""What tests and benchmarks share: the accuracy rule, inputs, timing, kernel resources."""

from vlakern.testing.compare import assert_accurate
from vlakern.testing.gpu_timing import interleave_on
from vlakern.testing.inputs import generator, poison, poisoned_allocations
from vlakern.testing.timing import Timing, interleave

__all__ = [
    "Timing",
    "assert_accurate",
    "generator",
    "interleave",
    "interleave_on",
    "poison",
    "poisoned_allocations",
]
