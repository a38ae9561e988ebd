"""action_embed in Triton: interpreted on every case, on a GPU, and its refusals."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import env, ops
from vlakern.errors import InputError
from vlakern.ops._dispatch import Key, refusals
from vlakern.ops.action_embed.cases import CASES, Case, make_inputs, op_arguments, plain_encoder
from vlakern.ops.linear import PackedLinear, pack_linear
from vlakern.testing import assert_accurate, generator, poison, poisoned_allocations

INTERPRETED = env.triton_interpret()
# The largest would be interpreted for a minute.
SMALL = [case for case in CASES if case.width * case.width * (case.layers - 1) < 1 << 18]
interpreted = pytest.mark.skipif(not INTERPRETED, reason="see test_in_interpreter")


def moved(value: Any, device: str) -> Any:
    if isinstance(value, PackedLinear):
        return dataclasses.replace(value, data=value.data.to(device))
    return value.to(device) if isinstance(value, Tensor) else value


def check(case: Case, device: str = "cpu") -> None:
    inputs = make_inputs(case, generator(str(case)))
    arguments = op_arguments(case, inputs, "rows")
    given = {name: moved(one, device) for name, one in arguments.items()}
    with poisoned_allocations():
        y = ops.action_embed(**given, backend="triton")
    exact = plain_encoder(case, inputs, torch.float64)
    assert_accurate(y.cpu(), exact, plain_encoder(case, inputs, case.dtype), str(case))


@interpreted
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_values(processors: int, case: Case) -> None:
    """At most twice the error of the unfolded network in the same precision, against fp64."""
    check(case)


@interpreted
@pytest.mark.parametrize("time", ["shared", "RH"])
def test_bound_call_repeats(processors: int, time: str, rng: torch.Generator) -> None:
    """The call that action_embed_out returns reads x and its row of the table anew."""
    case = Case(1, 4, 6, 20, "fp32", time)
    given = op_arguments(case, make_inputs(case, rng), "rows")
    x = given.pop("x")[0].clone()
    given["time"] = given["time"].reshape(-1, 20) if time == "RH" else given["time"]
    out = poison(torch.empty(4, 20))
    bound = ops.action_embed_out(x, **given, out=out, backend="triton")
    assert torch.equal(out, ops.action_embed(x, **given, backend="triton"))
    x.mul_(2.0)
    given["time"].add_(1.0)
    bound()
    assert torch.equal(out, ops.action_embed(x, **given, backend="triton"))


@pytest.mark.skipif(INTERPRETED, reason="is the one that interprets")
def test_in_interpreter(run_interpreted: Callable[[str], int]) -> None:
    """Everything above that needs Triton's interpreter, in a process where it interprets."""
    assert run_interpreted(__file__) >= 2 * len(SMALL) + 4


def test_opchecks_with_rows(rng: torch.Generator) -> None:
    """Schema and fake know how weights are packed, and torch.compile(fullgraph=True) traces it."""
    case = Case(2, 3, 5, 16, "fp32", "R")
    given = op_arguments(case, make_inputs(case, rng), "rows")
    x, a, b = given.pop("x"), given["w_in"], given["w_out"]
    time = given["time"].expand(2, 3, 16).reshape(6, 16)
    first, last = (a.data, a.n, a.k, a.kind), (b.data, b.n, b.k, b.kind, True)
    arguments = (x.flatten(0, 1), *first, time, *last, torch.float32, "auto", "rows")
    torch.library.opcheck(torch.ops.vlakern.action_embed.default, arguments)
    compiled = torch.compile(
        lambda x: ops.action_embed(x.sin(), **given), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(x), ops.action_embed(x.sin(), **given))


def test_refuses() -> None:
    """Each backend takes the weights that were packed for it, and both the same."""

    def reason(backend: str, isa: str, **facts: Any) -> str | None:
        key = Key(dtypes=("bfloat16",), flags=frozenset({"bf16", isa}), **facts)
        return refusals("action_embed", key)[backend]

    assert reason("triton", "rows", device="cuda", arch=80) is None
    assert "isa='rows'" in str(reason("triton", "n16", device="cuda", arch=80))
    assert "isa='n16'" in str(reason("cpu", "rows"))
    w_in, w_out = pack_linear(torch.zeros(6, 4)), pack_linear(torch.zeros(6, 6), isa="rows")
    with pytest.raises(InputError, match="w_out must be packed for n16 as w_in is, got rows"):
        ops.action_embed(torch.zeros(2, 4), w_in, torch.zeros(6), w_out)
    with pytest.raises(InputError, match="w_in must be packed as bf16 or fp32, got fp8"):
        ops.action_embed(torch.zeros(2, 4), pack_linear(torch.zeros(6, 4), "fp8"), torch.zeros(6))


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gpu_values(case: Case) -> None:
    """On the GPU, too, values obey the rule."""
    check(case, "cuda")
