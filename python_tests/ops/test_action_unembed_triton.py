"""action_unembed in Triton: interpreted on every case, on a GPU, and its refusals."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import env, ops
from vlakern.errors import InputError
from vlakern.ops._dispatch import Key, refusals
from vlakern.ops.action_unembed import FinalNorm
from vlakern.ops.action_unembed.cases import CASES, Case, make_inputs, op_arguments, plain_decoder
from vlakern.ops.action_unembed.reference import action_unembed_reference
from vlakern.ops.linear import PackedLinear, pack_linear
from vlakern.testing import assert_accurate, generator, poison, poisoned_allocations

INTERPRETED = env.triton_interpret()
# The largest would be interpreted for a minute.
SMALL = [case for case in CASES if case.width * case.hidden < 1 << 18]
interpreted = pytest.mark.skipif(not INTERPRETED, reason="see test_in_interpreter")


def moved(value: Any, device: str) -> Any:
    if isinstance(value, PackedLinear):
        return dataclasses.replace(value, data=value.data.to(device))
    if isinstance(value, FinalNorm):
        names = [field.name for field in dataclasses.fields(value)]
        return FinalNorm(**{name: moved(getattr(value, name), device) for name in names})
    return value.to(device) if isinstance(value, Tensor) else value


def check(case: Case, device: str = "cpu") -> None:
    inputs = make_inputs(case, generator(str(case)))
    arguments = op_arguments(case, inputs, "rows")
    given = {name: moved(one, device) for name, one in arguments.items()}
    with poisoned_allocations():
        y = ops.action_unembed(**given, out_dtype=case.dtype, backend="triton")
    options = inputs["norm"].options if inputs["norm"] else {}
    weights = [inputs[name] for name in ("w_hidden", "b_hidden", "w_out", "b_out")]
    exact = action_unembed_reference(inputs["h"].double(), *weights, **options)
    assert_accurate(y.cpu(), exact, plain_decoder(inputs, case.dtype), str(case))


@interpreted
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_values(processors: int, case: Case) -> None:
    """At most twice the error of plain PyTorch in the same precision, in poisoned memory."""
    check(case)


@interpreted
def test_bound_call_repeats(processors: int, rng: torch.Generator) -> None:
    """The call that action_unembed_out returns computes again from h and the norm as they are."""
    case = Case(3, 20, 12, 5, "fp32", "rms", True)
    given = op_arguments(case, make_inputs(case, rng), "rows")
    out = poison(torch.empty(3, 5))
    bound = ops.action_unembed_out(**given, out=out, backend="triton")
    assert torch.equal(out, ops.action_unembed(**given, backend="triton"))
    given["h"].add_(0.5)
    given["norm"].scale.mul_(2.0)
    bound()
    assert torch.equal(out, ops.action_unembed(**given, backend="triton"))


@pytest.mark.skipif(INTERPRETED, reason="is the one that interprets")
def test_in_interpreter(run_interpreted: Callable[[str], int]) -> None:
    """Everything above that needs Triton's interpreter, in a process where it interprets."""
    assert run_interpreted(__file__) >= 2 * len(SMALL) + 2


def test_opchecks_with_rows(rng: torch.Generator) -> None:
    """Schema and fake know how weights are packed, and torch.compile(fullgraph=True) traces it."""
    case = Case(3, 8, 6, 5, "fp32")
    given = op_arguments(case, make_inputs(case, rng), "rows")
    h, a, b = given.pop("h"), given["w_hidden"], given["w_out"]
    first, last = (a.n, a.k, a.kind, True), (b.data, b.n, b.k, b.kind, True)
    rest = ("", None, None, None, None, 1e-6, torch.float32, "auto", "rows")
    arguments = (h, a.data, *first, *last, *rest)
    torch.library.opcheck(torch.ops.vlakern.action_unembed.default, arguments)
    compiled = torch.compile(
        lambda h: ops.action_unembed(h.sin(), **given), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(h), ops.action_unembed(h.sin(), **given))


def test_refuses() -> None:
    """Each backend takes the weights that were packed for it, and both the same."""

    def reason(backend: str, isa: str, **facts: Any) -> str | None:
        key = Key(dtypes=("bfloat16",), flags=frozenset({"bf16", isa}), **facts)
        return refusals("action_unembed", key)[backend]

    assert reason("triton", "rows", device="cuda", arch=80) is None
    assert "isa='rows'" in str(reason("triton", "n16", device="cuda", arch=80))
    assert "isa='n16'" in str(reason("cpu", "rows"))
    hidden, out = pack_linear(torch.zeros(6, 4), isa="rows"), pack_linear(torch.zeros(5, 6))
    with pytest.raises(InputError, match="w_hidden must be packed for n16 as w_out is, got rows"):
        ops.action_unembed(torch.zeros(2, 4), hidden, out)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gpu_values(case: Case) -> None:
    """On the GPU, too, values obey the rule."""
    check(case, "cuda")
