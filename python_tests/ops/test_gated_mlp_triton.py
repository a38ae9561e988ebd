"""gated_mlp in Triton: interpreted on reduced cases, on a GPU, and its refusals."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import env, ops
from vlakern.errors import InputError
from vlakern.ops._dispatch import Key, refusals
from vlakern.ops.gated_mlp import mlp_workspace_bytes
from vlakern.ops.gated_mlp.cases import (
    BENCH,
    CASES,
    REDUCED,
    Case,
    exact_gated_mlp,
    make_inputs,
    plain_gated_mlp,
)
from vlakern.ops.linear import PackedLinear, pack_linear
from vlakern.ops.linear.cases import exact_linear, plain_linear
from vlakern.ops.linear.reference import LEVELS
from vlakern.testing import assert_accurate, generator, poison, poisoned_allocations

INTERPRETED = env.triton_interpret()
interpreted = pytest.mark.skipif(not INTERPRETED, reason="see test_in_interpreter")


def moved(value: Any, device: str) -> Any:
    """Tensors, packed weights and what holds them, on a device."""
    if isinstance(value, PackedLinear):
        return dataclasses.replace(value, data=value.data.to(device))
    if isinstance(value, dict):
        return {name: moved(one, device) for name, one in value.items()}
    return value.to(device) if isinstance(value, Tensor) else value


def made(case: Case, device: str = "cpu") -> Any:
    return [moved(one, device) for one in make_inputs(case, generator(str(case)), "rows")]


def check(case: Case, device: str = "cpu") -> None:
    gate_up, down, inputs = made(case, device)
    with poisoned_allocations():
        found = ops.gated_mlp(gate_up=gate_up, down=down, **inputs, backend="triton")
    if case.kind in LEVELS:
        # Beside a tie h is quantised one way or the other, so the second product takes the op's h.
        x, act = inputs["x"], inputs["activation"]
        h = ops.linear(x, gate_up, activation=act, out_dtype=torch.float32, backend="triton")
        rest = {"x": h, "residual": inputs.get("residual"), "activation": "none"}
        exact = exact_linear(down, rest)
        plain = plain_linear(down, down.unpack(), **rest, out_dtype=case.dtype)
    else:
        exact = exact_gated_mlp(gate_up, down, inputs)
        plain = plain_gated_mlp(gate_up, down, **inputs)
    assert_accurate(found, exact, plain, str(case))


@interpreted
@pytest.mark.parametrize("case", REDUCED, ids=str)
def test_values(processors: int, case: Case) -> None:
    """Values obey the accuracy rule, in memory that was poisoned, with and without parts of K."""
    check(case)


@interpreted
@pytest.mark.parametrize("kind", ["bf16", "fp32", "int8", "fp8"])
@pytest.mark.parametrize("rows", [17, 70])
def test_is_the_two_products(processors: int, kind: str, rows: int) -> None:
    """One call gives the bits of linear called twice, though h is quantised where it is made."""
    gate_up, down, inputs = made(Case(rows, 66, 70, 34, kind, torch.float32, bias=True))
    x, residual = inputs["x"], inputs["residual"]
    hidden = ops.linear(x, gate_up, activation="silu_gate", backend="triton")
    expected = ops.linear(hidden, down, residual=residual, backend="triton")
    rest = {"activation": "silu_gate", "residual": residual}
    assert torch.equal(ops.gated_mlp(x, gate_up, down, **rest, backend="triton"), expected)


@interpreted
def test_kinds_may_differ(processors: int, rng: torch.Generator) -> None:
    """A first product in bf16, also by the library, and a quantised second one."""
    for rows in (17, 600):
        x = torch.randn(rows, 40, generator=rng)
        first, second = torch.randn(60, 40, generator=rng), torch.randn(20, 30, generator=rng)
        gate_up = pack_linear(first, "bf16", gate=True, isa="rows")
        down = pack_linear(second, "int8", isa="rows")
        found = ops.gated_mlp(x, gate_up, down, activation="silu_gate", backend="triton")
        expected = ops.gated_mlp(x, gate_up, down, activation="silu_gate", backend="reference")
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * float(expected.std()))


@interpreted
@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_bound_call_repeats_in_a_shared_workspace(processors: int, kind: str) -> None:
    """The residual may be the output, and the bound call goes on from where the memory stands."""
    gate_up, down, inputs = made(Case(17, 64, 96, 64, kind))
    x, residual = inputs["x"], inputs["residual"].clone()
    rest: dict[str, Any] = {"activation": "silu_gate", "backend": "triton"}
    once = ops.gated_mlp(x, gate_up, down, residual=residual, **rest)
    twice = ops.gated_mlp(x, gate_up, down, residual=once, **rest)
    size = mlp_workspace_bytes(17, gate_up, down, "silu_gate")
    workspace = poison(torch.empty(size, dtype=torch.uint8))
    rest |= {"out": residual, "residual": residual}
    call = ops.gated_mlp_out(x, gate_up, down, workspace=workspace, **rest)
    poison(workspace)
    call()
    assert torch.equal(residual, twice)
    with pytest.raises(InputError, match="workspace must be contiguous and hold"):
        ops.gated_mlp_out(x, gate_up, down, workspace=workspace[: size - 256], **rest)


@pytest.mark.skipif(INTERPRETED, reason="is the one that interprets")
def test_in_interpreter(run_interpreted: Callable[[str], int]) -> None:
    """Everything above that needs Triton's interpreter, in a process where it interprets."""
    assert run_interpreted(__file__) >= 2 * len(REDUCED) + 22


def test_opchecks_with_rows(rng: torch.Generator) -> None:
    """Schema and fake know how weights are packed, and torch.compile(fullgraph=True) traces it."""
    gate_up, down, inputs = make_inputs(Case(3, 8, 6, 5, "fp8"), rng)
    first = (gate_up.data, gate_up.n, gate_up.k, gate_up.kind, gate_up.has_bias)
    second = (down.data, down.n, down.k, down.kind, down.has_bias)
    rest = ("silu_gate", inputs["residual"], torch.bfloat16, "auto", "rows")
    torch.library.opcheck(
        torch.ops.vlakern.gated_mlp.default, (inputs["x"], *first, *second, *rest)
    )

    def layer(x: Tensor) -> Tensor:
        return ops.gated_mlp(torch.tanh(x), gate_up, down, activation="silu_gate")

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(inputs["x"]), layer(inputs["x"]))


def test_refuses() -> None:
    """fp8 below sm_89 and on the CPU's kernels, panels on a GPU, and weights packed differently."""

    def reason(backend: str, *flags: str, arch: int = 90, device: str = "cuda") -> str | None:
        key = Key(device, arch, ("bfloat16",), flags=frozenset(flags))
        return refusals("gated_mlp", key)[backend]

    assert reason("triton", "bf16", "fp8", "rows") is None
    assert "fp8 needs sm_89" in str(reason("triton", "bf16", "fp8", "rows", arch=87))
    assert "isa='rows'" in str(reason("triton", "bf16", "n16"))
    assert "isa='n16'" in str(reason("cpu", "bf16", "rows", arch=0, device="cpu"))
    assert "fp8 needs a GPU" in str(reason("cpu", "fp8", "rows", arch=0, device="cpu"))
    gate_up = pack_linear(torch.zeros(6, 4), gate=True)
    down = pack_linear(torch.zeros(5, 3), isa="rows")
    with pytest.raises(InputError, match="down must be packed for n16 as gate_up is, got rows"):
        ops.gated_mlp(torch.zeros(2, 4), gate_up, down, activation="silu_gate")


@pytest.mark.gpu
@pytest.mark.parametrize("case", [*REDUCED, *CASES, *BENCH], ids=str)
def test_gpu_values(case: Case) -> None:
    """On the GPU, too, values obey the rule."""
    check(case, "cuda")
