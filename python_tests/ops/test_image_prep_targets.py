"""image_prep for GPUs, as far as a machine without one can tell."""

from typing import Any

import pytest

from vlakern import env
from vlakern.testing.aot import ARCHS, compile_for

VARIANTS = {
    "antialias, patches of 14, bf16": (True, 14, "*bf16"),
    "antialias, planes, fp32": (True, 0, "*fp32"),
    "two points, patches of 16, bf16": (False, 16, "*bf16"),
}


def triton_signature(kernel: Any, out: str) -> dict[str, str]:
    """Types of the kernel's arguments: the values of levels are in out's dtype."""
    pointers = {"images_ptr": "*u8", "values_ptr": out, "norm_ptr": "*fp32", "out_ptr": out}
    pointers |= {"y_first_ptr": "*i32", "x_first_ptr": "*i32"}
    names = [name for name in kernel.arg_names if not name.isupper()]
    return {name: pointers.get(name, "i32") for name in names}


@pytest.mark.skipif(
    env.triton_interpret(), reason="kernels made for the interpreter do not compile"
)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("arch", ARCHS)
def test_triton_compiles_without_spills(arch: int, variant: str) -> None:
    """Ahead of time nothing lives in local memory, and a multiprocessor can be filled."""
    from vlakern.ops.image_prep.triton_kernels import BLOCK, OPTIONS, image_prep_kernel

    whole, patch, out = VARIANTS[variant]
    options = {name: value for name, value in OPTIONS.items() if name != "BLOCK"}
    weights = dict.fromkeys(("y_weights_ptr", "x_weights_ptr"), "*i32" if whole else "*fp32")
    signature = triton_signature(image_prep_kernel, out)
    signature |= weights
    constants = {"WHOLE": whole, "PATCH": patch, "BLOCK": BLOCK}
    used = compile_for(image_prep_kernel, arch, signature, constants, options)
    assert (used.stack, used.local) == (0, 0)
    assert used.registers <= 64
