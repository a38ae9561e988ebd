"""Reading cuobjdump's resource listing; the compiler itself is tested by the ops."""

import pytest

from vlakern.testing.aot import Resources, parse_resources

LISTING = """
Resource usage:
 Common:
  GLOBAL:0
 Function k:
  REG:40 STACK:16 SHARED:0 LOCAL:8 CONSTANT[0]:568 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_reads_the_kernel() -> None:
    """Registers, stack and local come from the listing, dynamic shared memory from Triton."""
    assert parse_resources(LISTING, 90, 2048) == Resources(90, 40, 16, 8, 2048)


def test_another_number_of_kernels_is_an_error() -> None:
    """A listing without a kernel must not pass as one without spills."""
    with pytest.raises(ValueError, match="expected the resources of one kernel, found 0"):
        parse_resources("Resource usage:", 90, 0)
