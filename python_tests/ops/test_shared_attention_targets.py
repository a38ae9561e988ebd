"""shared_attention for GPUs, as far as a machine without one can tell: plans and machine code."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from vlakern import env
from vlakern.ops.shared_attention._plan import Plan, Sizes, plan_backward, plan_forward, width
from vlakern.testing.aot import ARCHS, Resources, compile_for

H200 = 132  # multiprocessors
# Bytes of shared memory that a block may have.
LIMITS = {
    80: 163 << 10,
    87: 163 << 10,
    90: 227 << 10,
    100: 227 << 10,
    110: 227 << 10,
    120: 99 << 10,
}
SIZES = {
    "rethink-2b suffix": Sizes(1, 16, 236, 2, 8, 128, 2, H200),
    "rethink-2b prefix": Sizes(1, 220, 220, 2, 8, 128, 2, H200),
    "pi0 suffix": Sizes(1, 51, 583, 8, 1, 256, 2, H200),
    "pi0.5 prefix": Sizes(1, 968, 968, 8, 1, 256, 2, H200),
    "SmolVLA suffix": Sizes(1, 50, 291, 3, 5, 64, 2, H200),
    "SigLIP": Sizes(2, 256, 256, 1, 16, 72, 2, H200),
}
TENSORS = {"q", "k", "v", "prefix_k", "prefix_v", "out", "grad_out", "grad_q", "grad_k", "grad_v"}
FLOATS = {"lse", "grad_lse", "delta", "part", "part_lse"}
RANGES = {"cu_q", "cu_k", "kv_end", "cu_prefix", "prefix_index", "rows"}
compiled = pytest.mark.skipif(
    env.triton_interpret(), reason="kernels made for the interpreter do not compile"
)


def test_plan_of_a_suffix_fills_the_gpu() -> None:
    """16 queries of 2 heads are one tile of 32 rows on 8 heads: 4 chunks of the keys make 32."""
    assert plan_forward(SIZES["rethink-2b suffix"]) == Plan(
        block_m=32, block_n=64, tiles=1, splits=4, chunk=64, warps=4, stages=2
    )


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("rows", [1, 8, 1000])
@pytest.mark.parametrize("processors", [1, 16, H200])
@pytest.mark.parametrize("keys", [0, 1, 64, 65, 4097])
def test_plans_cover_everything(sizes: Sizes, rows: int, processors: int, keys: int) -> None:
    """Tiles hold every row, chunks every key, none is empty, and splits only use idle ones."""
    s = dataclasses.replace(sizes, documents=rows, processors=processors, max_keys=keys)
    plan = plan_forward(s)
    assert (plan.tiles - 1) * plan.block_m < s.max_q * s.group <= plan.tiles * plan.block_m
    assert plan.chunk % plan.block_n == 0
    assert (plan.splits - 1) * plan.chunk < max(keys, 1) <= plan.splits * plan.chunk
    programs = s.documents * plan.tiles * s.groups
    assert plan.splits == 1 or plan.splits * programs <= processors


def test_widths() -> None:
    """A tile is a power of two, and no tensor core takes less than 16."""
    assert [width(d) for d in (1, 16, 17, 64, 72, 128, 256)] == [16, 16, 32, 64, 128, 128, 256]


def common(s: Sizes, cached: bool) -> dict[str, Any]:
    facts = {"HAS_PREFIX": cached, "HAS_ROWS": True, "ALIGN": 8, "WIDEN": False}
    return facts | {"GROUP": s.group, "D": s.head_dim, "BLOCK_D": width(s.head_dim)}


def machine_code(
    kernel: Any, arch: int, constants: dict[str, Any], warps: int, stages: int, **types: str
) -> Resources:
    """With bf16 tensors whose pointers are aligned, as a launch finds them."""
    names = [name for name in kernel.arg_names if not name.isupper()]
    signature: dict[str, Any] = dict.fromkeys(names, "i32") | {"scale": "fp32"}
    signature |= {name: ("i32", "i32") for name in names if name.endswith("_strides")}
    for group, kind in ((TENSORS, "*bf16"), (FLOATS, "*fp32"), (RANGES, "*i32")):
        signature |= dict.fromkeys(group & set(names), kind)
    signature |= types
    aligned = [name for name in names if signature[name][0] == "*"]
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True}
    return compile_for(kernel, arch, signature, constants, options, aligned)


def forward(name: str, arch: int) -> Resources:
    from vlakern.ops.shared_attention.triton_kernels import attend_kernel

    sizes = SIZES[name]
    plan = plan_forward(sizes)
    constants = common(sizes, "suffix" in name)
    constants |= {"BLOCK_M": plan.block_m, "BLOCK_N": plan.block_n}
    out = "*fp32" if plan.splits > 1 else "*bf16"
    return machine_code(attend_kernel, arch, constants, plan.warps, plan.stages, out=out)


def dq(name: str, arch: int) -> Resources:
    from vlakern.ops.shared_attention.triton_backward import dq_kernel

    sizes = SIZES[name]
    plan = plan_backward(sizes.head_dim, sizes.item)
    constants = common(sizes, "suffix" in name) | {"BLOCK_M": plan.dq_m, "BLOCK_N": plan.dq_n}
    constants |= {"HAS_GRAD_LSE": True}
    return machine_code(dq_kernel, arch, constants, plan.warps, plan.stages)


def dkv(name: str, arch: int, of_prefix: bool = False) -> Resources:
    from vlakern.ops.shared_attention.triton_backward import dkv_kernel

    sizes = SIZES[name]
    plan = plan_backward(sizes.head_dim, sizes.item)
    constants = common(sizes, of_prefix or "suffix" in name) | {"OF_PREFIX": of_prefix}
    constants |= {"BLOCK_M": plan.dkv_m, "BLOCK_N": plan.dkv_n}
    return machine_code(dkv_kernel, arch, constants, plan.warps, plan.stages)


def dkv_of_prefix(name: str, arch: int) -> Resources:
    return dkv(name, arch, of_prefix=True)


def assert_fits(used: Resources, record: Callable[[str, object], None]) -> None:
    record("resources", used)
    assert (used.stack, used.local) == (0, 0)
    assert used.shared <= LIMITS[90]


@compiled
@pytest.mark.parametrize("name", SIZES)
def test_forward_spills_nothing_on_sm_90(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    """Every main configuration lives in registers and in shared memory."""
    assert_fits(forward(name, 90), record_property)


@compiled
@pytest.mark.ci
@pytest.mark.parametrize("kernel", [dq, dkv, dkv_of_prefix])
@pytest.mark.parametrize("name", SIZES)
def test_backward_spills_nothing_on_sm_90(
    name: str,
    kernel: Callable[[str, int], Resources],
    record_property: Callable[[str, object], None],
) -> None:
    """Likewise for both backward kernels, of own keys and of cached ones."""
    assert_fits(kernel(name, 90), record_property)


@compiled
@pytest.mark.ci
@pytest.mark.parametrize("kernel", [forward, dq, dkv])
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("arch", [arch for arch in ARCHS if arch != 90])
def test_compiles_for_other_gpus(
    arch: int,
    name: str,
    kernel: Callable[[str, int], Resources],
    record_property: Callable[[str, object], None],
) -> None:
    """It fits the shared memory of each; what it spills is recorded."""
    used = kernel(name, arch)
    record_property("resources", used)
    assert used.shared <= LIMITS[arch]


@compiled
def test_combine_spills_nothing() -> None:
    """The second kernel of a split pass, for the widest heads and the most parts."""
    from vlakern.ops.shared_attention.triton_kernels import combine_kernel

    constants = {"D": 256, "BLOCK_D": 256, "BLOCK_S": 16, "ALIGN": 8, "WIDEN": False}
    used = machine_code(combine_kernel, 90, constants, 4, 1)
    assert (used.stack, used.local) == (0, 0)
