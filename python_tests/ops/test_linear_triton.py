"""linear in Triton: interpreted on reduced cases, on a GPU, its plans and its refusals."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import env, ops
from vlakern.errors import InputError, Unsupported
from vlakern.ops._dispatch import Key, refusals
from vlakern.ops.linear import PackedLinear, pack_linear, workspace_bytes
from vlakern.ops.linear.cases import (
    CASES,
    REDUCED,
    SHORT,
    Case,
    exact_linear,
    make_inputs,
    plain_linear,
)
from vlakern.ops.linear.reference import FP8_ROWS, KINDS, LEVELS, quantises, quantize_rows
from vlakern.ops.linear.triton_plan import LARGE, SHARED, Plan, Sizes, plan_linear
from vlakern.testing import assert_accurate, generator, poison, poisoned_allocations

BF16, F32 = torch.bfloat16, torch.float32
INTERPRETED = env.triton_interpret()
interpreted = pytest.mark.skipif(not INTERPRETED, reason="see test_in_interpreter")
every_kind = pytest.mark.parametrize("kind", KINDS)
H200 = 132  # multiprocessors


def worst_plain(packed: PackedLinear, inputs: dict[str, Any], exact: Tensor) -> Tensor:
    """Plain PyTorch's worst over orders of K: one order may be exact by luck where M N is small."""
    unpacked = packed.unpack()
    worst = plain_linear(packed, unpacked, **inputs)
    for seed in range(4):
        order = torch.randperm(packed.k, generator=generator(str(seed))).to(worst.device)
        weight = unpacked.weight.view(torch.int8) if packed.kind == "fp8" else unpacked.weight
        weight = weight[:, order].view(KINDS[packed.kind])
        moved = inputs | {"x": inputs["x"][:, order]}
        plain = plain_linear(packed, unpacked._replace(weight=weight), **moved)
        worse = (plain.double() - exact).abs() > (worst.double() - exact).abs()
        worst = torch.where(worse, plain, worst)
    return worst


def moved(value: Any, device: str) -> Any:
    """Tensors, packed weights and what holds them, on a device."""
    if isinstance(value, PackedLinear):
        return dataclasses.replace(value, data=value.data.to(device))
    if isinstance(value, dict):
        return {name: moved(one, device) for name, one in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def check(case: Case, device: str = "cpu") -> None:
    made = make_inputs(case, generator(str(case)), "rows")
    packed, inputs = (moved(one, device) for one in made)
    with poisoned_allocations():
        found = ops.linear(weight=packed, **inputs, backend="triton")
    exact = exact_linear(packed, inputs)
    assert_accurate(found, exact, worst_plain(packed, inputs, exact), str(case))


@interpreted
@pytest.mark.parametrize("case", REDUCED, ids=str)
def test_values(processors: int, case: Case) -> None:
    """Values obey the accuracy rule, in memory that was poisoned, with and without parts of K."""
    check(case)


@interpreted
@pytest.mark.parametrize("kind", LEVELS)
def test_rows_are_quantised_as_the_definition_does(kind: str, rng: torch.Generator) -> None:
    """Bit by bit: normal and tiny values, ties, a row of zeros; what is not finite is a scale of
    NaN."""
    from vlakern.ops.linear.triton_launch import Product, Quantised, _quantize

    x = torch.randn(9, 300, generator=rng)
    x[1] *= torch.logspace(-9, 0, 300)
    x[2] = torch.arange(300) / 2 - 20
    x[3], x[4], x[5] = 0, 1e-33, 3e38
    x[6, 7], x[7, 299], x[8] = torch.nan, -torch.inf, x[0] * 1e-38
    packed = pack_linear(torch.ones(1, 300), kind, isa="rows")
    steps = poison(torch.empty(9, 304, dtype=torch.int8)).view(KINDS[kind])
    scale = poison(torch.empty(9))
    _quantize(Product(x, packed, x), Quantised(steps, scale))()
    expected, scales = quantize_rows(x, kind)
    finite = scales.isfinite()
    assert finite.tolist() == [True] * 6 + [False] * 2 + [True]
    assert torch.equal(scale[finite], scales[finite])
    assert bool(scale[~finite].isnan().all())
    assert torch.equal(steps.float()[finite][:, :300], expected[finite])
    assert bool((steps.float()[:, 300:] == 0).all())


@interpreted
@every_kind
@pytest.mark.parametrize("rows", [5, FP8_ROWS + 1])
def test_what_is_not_finite_is_not_hidden(processors: int, kind: str, rows: int) -> None:
    """NaN and infinity in a row make that row NaN or infinite and no other."""
    packed = pack_linear(torch.ones(3, 1100), kind, isa="rows")
    x = torch.ones(rows, 1100)
    x[1, 7], x[2, 1099] = torch.nan, torch.inf
    found = ops.linear(x, packed, backend="triton").isfinite().all(1)
    assert found.tolist() == [True, False, False] + [True] * (rows - 3)


@interpreted
@every_kind
def test_bound_call_repeats_in_a_shared_workspace(
    processors: int, kind: str, rng: torch.Generator
) -> None:
    """The residual may be the output, also with padded rows; each call goes on from the memory."""
    packed = pack_linear(torch.randn(70, 1100, generator=rng), kind, isa="rows")
    x, full = torch.randn(17, 1100, generator=rng), torch.randn(17, 75, generator=rng)
    out, gap = full[:, :70], full[:, 70:].clone()
    once = ops.linear(x, packed, residual=out, backend="triton")
    twice = ops.linear(-x, packed, residual=once, backend="triton")
    workspace = torch.empty(workspace_bytes(17, packed, "none"), dtype=torch.uint8)
    given: dict[str, Any] = {"out": out, "residual": out, "workspace": poison(workspace)}
    call = ops.linear_out(x, packed, **given, backend="triton")
    assert torch.equal(out, once)
    x.neg_()
    poison(workspace)
    call()
    assert torch.equal(out, twice)
    assert torch.equal(full[:, 70:], gap)


@interpreted
def test_border() -> None:
    """What the kernels do not take is one sentence at the bind."""
    x, packed = torch.zeros(20, 40), pack_linear(torch.zeros(6, 40), "int8", isa="rows")
    small = torch.zeros(9, dtype=torch.uint8)
    with pytest.raises(InputError, match="workspace must be contiguous and hold 1280 bytes"):
        ops.linear_out(x, packed, out=torch.zeros(20, 6), workspace=small, backend="triton")
    with pytest.raises(InputError, match="out must have adjacent columns, got a stride of 2"):
        ops.linear_out(x, packed, out=torch.zeros(20, 12)[:, ::2], backend="triton")
    wide = torch.zeros(1, 200000)
    with pytest.raises(Unsupported, match="int8 sums hold K up to 131072, got 200000"):
        ops.linear(wide, pack_linear(wide, "int8", isa="rows"), backend="triton")


@interpreted
@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_many_rows_go_to_the_library(
    kind: str, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    """Above 512 rows torch multiplies, and only there."""
    from vlakern.ops.linear import triton_launch

    calls: list[int] = []
    library = triton_launch._library
    spy = lambda x, *rest: (calls.append(len(x)), library(x, *rest))  # noqa: E731
    monkeypatch.setattr(triton_launch, "_library", spy)
    packed = pack_linear(torch.randn(8, 16, generator=rng), kind, isa="rows")
    for rows in (LARGE, LARGE + 1):
        x = torch.randn(rows, 16, generator=rng)
        found = ops.linear(x, packed, activation="silu", backend="triton")
        expected = ops.linear(x, packed, activation="silu", backend="reference")
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert calls == [LARGE + 1]


@pytest.mark.skipif(INTERPRETED, reason="is the one that interprets")
def test_in_interpreter(run_interpreted: Callable[[str], int]) -> None:
    """Everything above that needs Triton's interpreter, in a process where it interprets."""
    assert run_interpreted(__file__) >= 2 * len(REDUCED) + 30


@pytest.mark.parametrize("rows", [1, FP8_ROWS, FP8_ROWS + 1])
def test_fp8_is_served_by_the_reference(rows: int, rng: torch.Generator) -> None:
    """On any device, by the definition: few rows are rounded to bf16, many are quantised."""
    weight, x = torch.randn(30, 50, generator=rng), torch.randn(rows, 50, generator=rng)
    packed = pack_linear(weight, "fp8", torch.ones(30))
    steps, scale = quantize_rows(weight, "fp8")
    stored = packed.unpack()
    assert packed.isa == "rows"
    assert torch.equal(stored.weight.float(), steps)
    assert stored.scale is not None
    assert torch.equal(stored.scale, scale)
    assert float(steps.abs().amax(1).min()) == 448
    # e4m3 has 3 bits after the point: relative to its size a value moves by 2^-4 at most.
    error = (steps * scale[:, None] - weight).abs()
    assert bool((error <= weight.abs() / 16 + scale[:, None] * 2**-10).all())
    with poisoned_allocations():
        found = ops.linear(x, packed)
    exact = exact_linear(packed, {"x": x})
    assert_accurate(found, exact, plain_linear(packed, stored, x, "none", F32), "fp8")
    taken = x.bfloat16().double() if rows <= FP8_ROWS else None
    if taken is None:
        p, t = quantize_rows(x, "fp8")
        taken = p.double() * t[:, None]
    torch.testing.assert_close(exact, taken @ (steps.double() * scale[:, None]).T + 1)


def test_fp8_saturates() -> None:
    """A value that rounding carries past the largest is the largest; small ones are subnormal."""
    p, t = quantize_rows(torch.tensor([[448.0, -448.0, 433.0, 431.0, 0.003]]), "fp8")
    assert p.tolist() == [[448.0, -448.0, 448.0, 416.0, 2.0**-9 * 2]]
    assert float(t[0]) == 1.0
    most = torch.tensor([0.1, 0.3, 0.7, 1 / 3, 3e38, 1e-29])[:, None]
    assert quantize_rows(most, "fp8")[0].tolist() == [[448.0]] * 6


def test_compiles_and_opchecks_with_rows(rng: torch.Generator) -> None:
    """Schema and fake know how weights are packed; torch.compile(fullgraph=True) traces it."""
    packed = pack_linear(torch.randn(12, 7, generator=rng), "fp8", gate=True)
    x = torch.randn(3, 7, generator=rng)
    facts = (packed.n, packed.k, packed.kind, packed.gate, packed.has_bias)
    rest = (None, "silu_gate", None, None, F32, "auto", packed.isa)
    torch.library.opcheck(torch.ops.vlakern.linear.default, (x, packed.data, *facts, *rest))

    def call(x: Tensor) -> Tensor:
        return ops.linear(torch.tanh(x), packed, activation="silu_gate")

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), call(x))


def test_plans() -> None:
    """Few rows: the largest tiles that fill the GPU; where none does, parts of K."""
    assert plan_linear(Sizes(1, 1024, 3072, "bf16", False, H200)) == Plan(
        library=False,
        quantised=False,
        block_m=16,
        block_n=16,
        block_k=128,
        splits=2,
        chunk=1536,
        warps=2,
        stages=4,
    )
    assert plan_linear(Sizes(17, 16384, 2048, "bf16", True, H200)).block_n == 64
    assert plan_linear(Sizes(220, 2048, 2048, "int8", False, H200)).quantised
    assert not plan_linear(Sizes(LARGE, 2048, 2048, "bf16", False, H200)).library
    assert plan_linear(Sizes(LARGE + 1, 2048, 2048, "bf16", False, H200)).library
    assert not plan_linear(Sizes(LARGE + 1, 2048, 2048, "fp8", False, H200)).library


@pytest.mark.parametrize("case", [*CASES, *SHORT, *REDUCED], ids=str)
@pytest.mark.parametrize("count", [1, 16, H200, 1000])
def test_plans_cover_everything(case: Case, count: int) -> None:
    """Parts hold all of K, none is empty, parts only use what is idle, and memory suffices."""
    gate = case.activation.endswith("_gate")
    s = Sizes(case.m, case.columns, case.k, case.kind, gate, count)
    plan = plan_linear(s)
    assert plan.chunk % plan.block_k == 0
    assert (plan.splits - 1) * plan.chunk < max(s.k, 1) <= plan.splits * plan.chunk
    tiles = -(-s.m // plan.block_m) * -(-s.columns // plan.block_n)
    assert plan.splits == 1 or plan.splits * tiles <= count
    assert plan.quantised == quantises(s.kind, s.m)
    assert plan.splits == 1 or not plan.library
    item = 2 if s.kind == "fp8" and not plan.quantised else KINDS[s.kind].itemsize
    operands = plan.block_m + plan.block_n * (2 if gate and plan.splits == 1 else 1)
    assert operands * plan.block_k * item * plan.stages <= SHARED


def test_refuses() -> None:
    """fp8 below sm_89 and on CPU kernels, weights of the other layout, fp16, the CPU, old GPUs."""

    def reasons(*flags: str, dtype: str = "bfloat16", **other: Any) -> dict[str, str | None]:
        facts = {"device": "cuda", "arch": 90, "flags": frozenset(flags)} | other
        return refusals("linear", Key(dtypes=(dtype,), **facts))

    for arch in (89, 90, 100, 110, 120):
        assert reasons("fp8", "rows", arch=arch)["triton"] is None
    for arch in (80, 87):
        assert reasons("int8", "rows", arch=arch)["triton"] is None
        assert f"fp8 needs sm_89 or newer, the GPU is sm_{arch}" in str(
            reasons("fp8", "rows", arch=arch)["triton"]
        )
    assert "isa='rows'" in str(reasons("bf16", "n16")["triton"])
    assert "not float16" in str(reasons("bf16", "rows", dtype="float16")["triton"])
    assert "sm_80 or newer" in str(reasons("bf16", "rows", arch=75)["triton"])
    cpu = {"device": "cpu", "arch": 0}
    assert "isa='n16'" in str(reasons("bf16", "rows", **cpu)["cpu"])
    assert reasons("bf16", "n16", **cpu)["cpu"] is None
    assert reasons("fp8", "rows", **cpu)["reference"] is None
    x = torch.zeros(2, 4)
    with pytest.raises(Unsupported, match="cpu of linear refuses: fp8 needs a GPU of sm_89"):
        ops.linear(x, pack_linear(torch.zeros(6, 4), "fp8"), backend="cpu")
    with pytest.raises(InputError, match="isa must be rows, or n16 of bf16, fp32, int8"):
        pack_linear(x, "fp8", isa="n16")
    if not INTERPRETED:
        with pytest.raises(Unsupported, match="triton of linear refuses: needs an NVIDIA GPU"):
            ops.linear(x, pack_linear(torch.zeros(6, 4), isa="rows"), backend="triton")


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*REDUCED, *CASES, *SHORT], ids=str)
def test_gpu_values(case: Case) -> None:
    """On the GPU, too, values obey the rule."""
    check(case, "cuda")


@pytest.mark.gpu
@every_kind
@pytest.mark.parametrize("rows", [17, 220])
def test_gpu_gives_the_same_bits_every_time(kind: str, rows: int) -> None:
    """250 repeats of a product with parts of K give one result."""
    case = Case(rows, 1024, 3072, kind, parts=frozenset({"residual"}))
    packed, inputs = (moved(one, "cuda") for one in make_inputs(case, generator("bits"), "rows"))
    first = ops.linear(weight=packed, **inputs, backend="triton")
    for _ in range(250):
        assert torch.equal(ops.linear(weight=packed, **inputs, backend="triton"), first)
