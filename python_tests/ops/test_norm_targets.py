"""norm and qkv_prep for GPUs, as far as a machine without one can tell."""

from typing import Any

import pytest

from vlakern import env
from vlakern.testing.aot import ARCHS, Resources, compile_for

pytestmark = pytest.mark.skipif(
    env.triton_interpret(), reason="kernels made for the interpreter do not compile"
)
REAL_WIDTHS = (128, 1024, 2048)


def signature(kernel: Any, data: str, fp32: tuple[str, ...], ints: dict[str, str]) -> dict:
    """Pointers to ``data`` but for the named ones; scalars are i32 but for eps."""
    names = [name for name in kernel.arg_names if not name.isupper()]
    types = {name: data if name.endswith("_ptr") else "i32" for name in names}
    types |= dict.fromkeys(fp32, "*fp32") | ints | {"eps": "fp32"}
    return {name: types[name] for name in names}


def compile_with(
    kernel: Any, arch: int, types: dict[str, str], flags: tuple[str, ...], settings: dict[str, Any]
) -> Resources:
    """Compiles with every flag on; settings hold the blocks and the compiler's options."""
    options = {n: settings[n] for n in ("num_warps", "enable_fp_fusion") if n in settings}
    blocks = {name: value for name, value in settings.items() if name not in options}
    return compile_for(kernel, arch, types, dict.fromkeys(flags, True) | blocks, options)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("width", REAL_WIDTHS)
def test_norm_compiles_without_spills(arch: int, width: int) -> None:
    """Ahead of time, with everything on, nothing lives in local memory."""
    from vlakern.ops.norm import _triton_launch as launch
    from vlakern.ops.norm import triton_kernels as kernels

    kinds, forward = ("LAYER", "PLUS_ONE"), kernels.norm_kernel
    types = signature(forward, "*bf16", (), {"row_group_ptr": "*i32"})
    flags = (*kinds, *launch.FORWARD_FLAGS)
    whole = launch.options(width) | {"WIDEN": False}
    used = [compile_with(forward, arch, types, flags, whole)]

    backward, sums = kernels.norm_backward_kernel, ("p_ptr", "q_ptr", "g_ptr")
    types = signature(backward, "*bf16", sums, dict.fromkeys(("order_ptr", "start_ptr"), "*i64"))
    flags = (*kinds, *launch.BACKWARD_FLAGS)
    used.append(compile_with(backward, arch, types, flags, launch.options(width)))

    finish = kernels.norm_finish_kernel
    flags = ("PLUS_ONE", "WEIGHT", "BIAS", "SCALE", "SHIFT", "GATE")
    settings: dict[str, Any] = {"TILE": launch.TILE, "enable_fp_fusion": False}
    used.append(compile_with(finish, arch, signature(finish, "*bf16", sums, {}), flags, settings))
    assert [(one.stack, one.local) for one in used] == [(0, 0)] * 3
    assert max(one.registers for one in used) <= 160


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("heads", "groups", "head_dim"), [(16, 8, 128), (8, 1, 256), (15, 5, 64)])
def test_qkv_prep_compiles_without_spills(
    arch: int, heads: int, groups: int, head_dim: int
) -> None:
    """The same for qkv_prep at the shapes of rethink-2b, pi0 and SmolVLA."""
    from vlakern.ops.qkv_prep import triton_kernels as kernels

    settings = kernels.options(heads, groups, head_dim)
    angles, rows = ("cos_ptr", "sin_ptr"), {"rows_ptr": "*i32"}
    forward, backward = kernels.qkv_prep_kernel, kernels.qkv_prep_backward_kernel
    types = signature(forward, "*bf16", angles, rows)
    whole = settings | {"WIDEN": False}
    used = [compile_with(forward, arch, types, ("NORM", "PLUS_ONE"), whole)]
    sums = (*angles, "partial_ptr", "dcos_ptr", "dsin_ptr")
    types = signature(backward, "*bf16", sums, rows)
    flags = ("NORM", "PLUS_ONE", "ANGLES")
    used.append(compile_with(backward, arch, types, flags, settings))
    assert [(one.stack, one.local) for one in used] == [(0, 0)] * 2
    assert max(one.registers for one in used) <= 160
