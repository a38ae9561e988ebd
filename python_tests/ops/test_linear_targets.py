"""linear, gated_mlp and the action projections for GPUs, as far as a machine without one can tell:
machine code of the plans of real shapes."""

from collections.abc import Callable
from typing import Any

import pytest

from vlakern import env
from vlakern.ops.linear.reference import LEVELS
from vlakern.ops.linear.triton_plan import SHARED, Sizes, plan_linear
from vlakern.testing.aot import ARCHS, Resources, compile_for

compiled = pytest.mark.skipif(
    env.triton_interpret(), reason="kernels made for the interpreter do not compile"
)
H200 = 132  # multiprocessors
KINDS = ("bf16", "int8", "fp8")
# Columns, K and gate: rethink-2b's and pi0's attention output, down and gate with up projections.
SHAPES = ((2048, 1024, False), (1024, 3072, False), (3072, 1024, True), (16384, 2048, True))
STORED = {"bf16": "*bf16", "fp32": "*fp32", "int8": "*i8", "fp8": "*fp8e4nv"}
FLOATS = ("x_scale", "w_scale", "row_scale", "bias", "scales")
ALIGNED = ("chunk", "k", "columns", "x_stride", "w_stride", "residual_stride", "out_stride")
Record = Callable[[str, object], None]


def machine_code(
    kernel: Any, arch: int, types: dict[str, str], constants: dict[str, Any], **options: int
) -> Resources:
    """With pointers and strides that are multiples of 16, as a launch finds torch's."""
    names = [name for name in kernel.arg_names if not name.isupper()]
    floats = dict.fromkeys(set(FLOATS) & set(names), "*fp32")
    signature = dict.fromkeys(names, "i32") | floats | types
    aligned = [name for name in names if signature[name][0] == "*" or name in ALIGNED]
    settings = options | {"enable_fp_fusion": False}
    return compile_for(kernel, arch, signature, constants, settings, aligned)


def flags(kind: str, quantised: bool, activation: str) -> dict[str, Any]:
    """Everything that may follow a product."""
    on = dict.fromkeys(("ROW_SCALED", "BIAS", "RESIDUAL"), True)
    scaled = {"X_SCALED": quantised, "W_SCALED": kind in LEVELS}
    return on | scaled | {"ACTIVATION": activation, "WIDEN": False}


def product(arch: int, s: Sizes) -> Resources:
    """The product of a plan, with all that may follow it; x is fp32 if its elements are wide."""
    from vlakern.ops.linear.triton_kernels import product_kernel

    plan = plan_linear(s)
    split = plan.splits > 1
    sums = "*i32" if s.kind == "int8" else "*fp32"
    types = {
        "x": STORED[s.kind] if plan.quantised else "*fp32" if s.item == 4 else "*bf16",
        "weight": STORED[s.kind],
        "residual": "*bf16",
        "out": sums if split else "*bf16",
    }
    activation = "gelu_tanh_gate" if s.gate else "silu"
    constants = flags(s.kind, plan.quantised, activation) | {
        "KIND": "bf16" if s.kind == "fp8" and not plan.quantised else s.kind,
        "GATED": s.gate and not split,
        "SPLIT": split,
        "EVEN_K": s.k % plan.chunk == 0,
        "BLOCK_M": plan.block_m,
        "BLOCK_N": plan.block_n,
        "BLOCK_K": plan.block_k,
    }
    options = {"num_warps": plan.warps, "num_stages": plan.stages}
    return machine_code(product_kernel, arch, types, constants, **options)


def every_shape(arch: int, kind: str, rows: int, record: Record) -> list[Resources]:
    found = []
    for columns, k, gate in SHAPES:
        sizes = Sizes(rows, columns, k, kind, gate, H200)
        found.append(product(arch, sizes))
        record("resources", (sizes, found[-1]))
    return found


@compiled
@pytest.mark.parametrize("rows", [1, 17, 50, 220, 512])
@pytest.mark.parametrize("kind", [*KINDS, "fp32"])
def test_products_spill_nothing_on_sm_90(
    kind: str, rows: int, record_property: Callable[[str, object], None]
) -> None:
    """Every plan of the real shapes lives in registers and in shared memory."""
    for used in every_shape(90, kind, rows, record_property):
        assert (used.stack, used.local) == (0, 0)
        assert used.shared <= SHARED + 1024


@compiled
@pytest.mark.ci
@pytest.mark.parametrize("rows", [1, 17, 50, 220, 512])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch != 90])
def test_products_compile_for_other_gpus(
    arch: int, kind: str, rows: int, record_property: Callable[[str, object], None]
) -> None:
    """It fits the shared memory of each; what it spills is recorded. fp8 is refused below sm_89."""
    if kind == "fp8" and arch < 89:
        pytest.skip("refused")
    used = every_shape(arch, kind, rows, record_property)
    assert max(one.shared for one in used) <= SHARED + 1024
    assert max(one.local for one in used) == 0
    assert max(one.stack for one in used) <= 160


@compiled
@pytest.mark.parametrize("arch", ARCHS)
def test_one_shape_compiles_for_every_gpu(arch: int) -> None:
    """The down projection of rethink-2b's expert, and what follows it, without spills."""
    used = [product(arch, Sizes(17, 1024, 3072, kind, False, H200)) for kind in ("bf16", "int8")]
    if arch >= 89:
        used.append(product(arch, Sizes(17, 1024, 3072, "fp8", False, H200)))
    used += rest(arch, "int8") + (rest(arch, "fp8") if arch >= 89 else [])
    assert [(one.stack, one.local) for one in used] == [(0, 0)] * len(used)


@compiled
@pytest.mark.parametrize("arch", ARCHS)
def test_products_of_other_experts_compile_for_every_gpu(arch: int) -> None:
    """Gate and up of pi0's and of SmolVLA's expert, whose K is no multiple of a tile, for 50
    positions of a chunk."""
    shapes = ((4096, 1024), (2048, 720))
    used = [product(arch, Sizes(50, *one, "bf16", True, H200)) for one in shapes]
    assert [(one.stack, one.local) for one in used] == [(0, 0)] * 2


@compiled
@pytest.mark.parametrize("rows", [50, 400])
def test_products_of_fp32_rows_fit_the_least_shared_memory(rows: int) -> None:
    """Noise of 32 slots of one chunk and of eight, as it comes; sm_120 has 99 KB for a block."""
    sizes = Sizes(rows, 1024, 32, "bf16", False, H200, item=4)
    used = product(120, sizes)
    assert (used.stack, used.local) == (0, 0)
    assert used.shared <= 99 << 10


def rest(arch: int, kind: str) -> list[Resources]:
    """The kernels beside products, for the widest rows, 16384 of pi0's trunk: quantise, finish, and
    the hidden layer, of which no model has a bias."""
    from vlakern.ops.gated_mlp.triton_kernels import hidden_kernel
    from vlakern.ops.linear.triton_kernels import finish_kernel, quantize_kernel

    sums, steps = "*i32" if kind == "int8" else "*fp32", STORED[kind]
    constants: dict[str, Any] = {"LEVELS": LEVELS[kind], "BLOCK": 16384, "WIDEN": False}
    types = {"x": "*bf16", "steps": steps}
    used = [machine_code(quantize_kernel, arch, types, constants, num_warps=16)]
    given = flags(kind, True, "silu_gate")
    settings = given | {"GATED": True, "BLOCK": 512}
    types = {"sums": sums, "residual": "*bf16", "out": "*bf16"}
    used.append(machine_code(finish_kernel, arch, types, settings, num_warps=4))
    names = ("X_SCALED", "W_SCALED", "ACTIVATION")
    constants |= {name: given[name] for name in names} | {"BIAS": False}
    types = {"sums": sums, "steps": steps}
    return [*used, machine_code(hidden_kernel, arch, types, constants, num_warps=16)]
