"""What tests and benchmarks share: the accuracy rule, inputs, timing, kernel resources."""

from vlakern.testing.compare import assert_accurate
from vlakern.testing.inputs import generator, poison, poisoned_allocations
from vlakern.testing.timing import Timing, interleave

__all__ = [
    "Timing",
    "assert_accurate",
    "generator",
    "interleave",
    "poison",
    "poisoned_allocations",
]
