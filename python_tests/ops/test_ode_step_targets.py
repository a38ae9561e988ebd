"""ode_step for GPUs, as far as a machine without one can tell."""

from typing import Any

import pytest

from vlakern import env
from vlakern.ops import _native
from vlakern.testing.aot import ARCHS, compile_for


def test_cuda_index_arithmetic() -> None:
    """The CUDA threads cover every element once, tau's threads included, and stay inside."""
    native = _native.cpu_module()
    shapes = {(2, 3, 8, 64): 4, (2, 3, 8, 68): 1, (3, 5, 13, 64): 1, (2, 3, 0, 64): 4}
    for (rows, positions, slots, address), expected in shapes.items():
        run, block, grid, threads = native.ode_step_launch(rows, positions, slots, address)
        assert run == expected
        assert (grid - 1) * block < threads <= grid * block
        places = [native.ode_step_place(i, positions, max(slots, 1), run) for i in range(threads)]
        covered = [(b, h, a + i) for b, h, a in places for i in range(run) if a + i < slots]
        assert sorted(covered) == [
            (b, h, a) for b in range(rows) for h in range(positions) for a in range(slots)
        ]
        assert sum(a == 0 for _, _, a in places) == rows * positions


def triton_signature(kernel: Any, x: str, v: str) -> dict[str, str]:
    """Types of the kernel's arguments: pointers by name, strides 64-bit where rows step far."""
    pointers = {"x_ptr": x, "v_ptr": v, "v0_ptr": v, "frozen_ptr": x, "x_out_ptr": x}
    pointers |= {"frozen_len_ptr": "*i32", "mask_ptr": "*u8"}
    times = ("tau_ptr", "dtau_ptr", "tau_out_ptr")
    led = ("at_ptr", "decided_ptr", "weights_ptr", "most_ptr")
    pointers |= dict.fromkeys((*times, *led), "*fp32")
    scalars = dict.fromkeys(("c0", "c1", "c_tau", "left", "curve"), "fp32")
    names = [name for name in kernel.arg_names if not name.isupper()]
    return {name: (pointers | scalars).get(name, "i32") for name in names}


@pytest.mark.skipif(
    env.triton_interpret(), reason="kernels made for the interpreter do not compile"
)
@pytest.mark.parametrize("led", [False, True], ids=["free", "led"])
@pytest.mark.parametrize("arch", ARCHS)
def test_triton_compiles_without_spills(arch: int, led: bool) -> None:
    """Ahead of time, with everything on, nothing lives in local memory."""
    from vlakern.ops.ode_step.triton_kernels import BLOCK, ode_step_kernel, options

    chosen = {name: value for name, value in options(led).items() if name != "BLOCK"}
    flags = ("HAS_V0", "HAS_FROZEN", "HAS_MASK", "PER_POSITION")
    constants = dict.fromkeys(flags, True) | {"HAS_LED": led, "BLOCK": BLOCK}
    signature = triton_signature(ode_step_kernel, "*fp32", "*fp32" if led else "*bf16")
    used = compile_for(ode_step_kernel, arch, signature, constants, chosen)
    assert (used.stack, used.local) == (0, 0)
    assert used.registers <= 128
