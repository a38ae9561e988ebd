"""Triton kernels compiled ahead of time, without a GPU, and what the machine code uses."""

import re
import subprocess
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ARCHS", "Resources", "compile_for", "parse_resources"]

ARCHS = (80, 87, 90, 100, 110, 120)


@dataclass(frozen=True)
class Resources:
    """What one kernel uses on one architecture.

    Attributes:
        arch: 90 for sm_90.
        registers: per thread.
        stack: bytes per thread; more than 0 means local arrays or spills.
        local: bytes of local memory per thread.
        shared: bytes of shared memory per block.
    """

    arch: int
    registers: int
    stack: int
    local: int
    shared: int


def compile_for(
    kernel: Any,
    arch: int,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    options: Mapping[str, Any],
    aligned: Collection[str] = (),
) -> Resources:
    """Compiles a ``triton.jit`` kernel for sm_``arch``.

    Args:
        kernel: a kernel that was not made under ``TRITON_INTERPRET=1``.
        arch: 90 for sm_90.
        signature: Triton's type of each argument that is not constant, e.g. ``*bf16`` or ``i32``.
        constants: value of each ``constexpr`` argument.
        options: ``num_warps``, ``num_stages``, ``enable_fp_fusion``.
        aligned: arguments that are multiples of 16, as a launch finds torch's pointers to be.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = dict(signature) | dict.fromkeys(constants, "constexpr")
    ordered = {name: types[name] for name in kernel.arg_names}
    multiples: Any = {(list(ordered).index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(kernel, ordered, dict(constants), multiples)
    compiled: Any = triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options=dict(options)
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        command = [str(tool), "--dump-resource-usage", file.name]
        listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return parse_resources(listing, arch, compiled.metadata.shared)


def parse_resources(listing: str, arch: int, shared: int) -> Resources:
    """Reads the one kernel of cuobjdump's resource listing; dynamic shared memory is not in it."""
    found = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", listing)
    if len(found) != 1:
        raise ValueError(f"expected the resources of one kernel, found {len(found)} in {listing!r}")
    registers, stack, local = map(int, found[0])
    return Resources(arch, registers, stack, local, shared)
