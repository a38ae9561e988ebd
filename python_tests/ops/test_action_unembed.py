"""action_unembed: every backend and instruction set against the network in fp64."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import ops
from vlakern.errors import InputError
from vlakern.models import VLA, preset
from vlakern.ops import _native
from vlakern.ops.action_unembed.cases import (
    CASES,
    Case,
    make_inputs,
    op_arguments,
    plain_decoder,
)
from vlakern.ops.action_unembed.reference import action_unembed_reference
from vlakern.testing import assert_accurate, generator, poison, poisoned_allocations

ISAS: list[str] = _native.native_info()["isas"]
WAYS = [("reference", ""), *(("cpu", isa) for isa in ISAS)]
ids = [f"{backend}{isa and '-'}{isa}" for backend, isa in WAYS]
every_way = pytest.mark.parametrize(("backend", "isa"), WAYS, ids=ids)
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True)
def forced_isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces the instruction set that the test's parameter names."""
    call = getattr(request.node, "callspec", None)
    if call is not None and call.params.get("isa"):
        monkeypatch.setenv("VLAKERN_CPU_ISA", call.params["isa"])


def check(case: Case, inputs: dict[str, Any], backend: str) -> Tensor:
    """The rule, in poisoned memory."""
    with poisoned_allocations():
        y = ops.action_unembed(**op_arguments(case, inputs), out_dtype=case.dtype, backend=backend)
    options = inputs["norm"].options if inputs["norm"] else {}
    names = ("w_hidden", "b_hidden", "w_out", "b_out")
    given = [inputs[name] for name in names]
    exact = action_unembed_reference(inputs["h"].double(), *given, **options)
    plain = plain_decoder(inputs, case.dtype)
    assert_accurate(y, exact, plain, "velocities")
    return y


@every_case
@every_way
def test_values(backend: str, isa: str, case: Case, rng: torch.Generator) -> None:
    """At most twice the error of plain PyTorch in the same precision, in poisoned memory."""
    check(case, make_inputs(case, rng), backend)


def test_fuzz(fuzz: range) -> None:
    """Random sizes, norms and layers."""
    for seed in fuzz:
        pick = random.Random(seed)
        case = Case(
            pick.randrange(20),
            pick.randint(2, 90),
            pick.choice((0, pick.randint(1, 70))),
            pick.randint(1, 40),
            pick.choice(("bf16", "fp32")),
            pick.choice(("", "rms", "rms_plus_one", "layer")),
            pick.random() < 0.5,
        )
        try:
            check(case, make_inputs(case, generator(f"unembed {seed}")), "cpu")
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {case!r}: {error}") from error


@every_way
def test_is_the_models_decoder(backend: str, isa: str, rng: torch.Generator) -> None:
    """Packed weights of a VLA decode as it does; output may be wider than the tokens' dtype."""
    torch.manual_seed(0)
    model = VLA(preset("tiny"))
    decoder: Any = model.action_decoder
    first, _, last = decoder
    h = torch.randn(6, first.weight.shape[1], generator=rng)
    weights = [ops.pack_linear(one.weight, "fp32", bias=one.bias) for one in (first, last)]
    with torch.no_grad():
        expected = model.action_decoder(h)
    found = ops.action_unembed(h, *weights, backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    wide = ops.action_unembed(h.bfloat16(), *weights, out_dtype=torch.float32, backend=backend)
    assert wide.dtype == torch.float32


def test_threads_do_not_change_bits(rng: torch.Generator) -> None:
    """One, two and three threads give the same bits."""
    case = Case(50, 96, 64, 32, norm="rms")
    given, found, before = op_arguments(case, make_inputs(case, rng)), [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(ops.action_unembed(**given, backend="cpu"))
    torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


@every_way
def test_bound_call_repeats(backend: str, isa: str, rng: torch.Generator) -> None:
    """The call that action_unembed_out returns reads h and the norm's modulation anew."""
    case = Case(4, 12, 20, 6, "fp32", "rms", True)
    given = op_arguments(case, make_inputs(case, rng))
    out = poison(torch.empty(4, 6))
    bound = ops.action_unembed_out(**given, out=out, backend=backend)
    given["h"].mul_(2.0)
    given["norm"].scale.add_(1.0)
    bound()
    assert torch.equal(out, ops.action_unembed(**given, backend=backend))


def test_gradients_without_packing(rng: torch.Generator) -> None:
    """The definition is differentiable, by finite differences; packed weights are not."""
    sizes = ((3, 4), (5, 4), (5,), (2, 5), (2,))
    leaves = tuple(torch.randn(s, generator=rng).double().requires_grad_() for s in sizes)

    def decode(h: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        return ops.action_unembed(h, w1, w2, b_hidden=b1, b_out=b2, norm=ops.FinalNorm("rms"))

    assert torch.autograd.gradcheck(decode, leaves)
    weights = ops.pack_linear(torch.zeros(2, 4), "fp32")
    with pytest.raises(InputError, match="no gradient"):
        ops.action_unembed(torch.zeros(3, 4, requires_grad=True), None, weights)


def test_opcheck_and_compile(rng: torch.Generator) -> None:
    """Schema and fake agree with the op; it compiles without a graph break."""
    case = Case(4, 12, 20, 6, "fp32", "rms", True)
    given = op_arguments(case, make_inputs(case, rng))
    a, b, h = given["w_hidden"], given["w_out"], given["h"]
    weights = (a.data, a.n, a.k, a.kind, True, b.data, b.n, b.k, b.kind, True)
    arguments = (h, *weights, *given["norm"].parts, torch.float32, "auto")
    torch.library.opcheck(torch.ops.vlakern.action_unembed.default, arguments)
    rest = {name: one for name, one in given.items() if name != "h"}
    compiled = torch.compile(
        lambda h: ops.action_unembed(h.sin(), **rest), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(h), ops.action_unembed(h.sin(), **rest))


WEIGHTS = ops.pack_linear(torch.zeros(6, 4), "fp32")
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "h": ({"h": torch.zeros(2, 5)}, r"h must be \[N, M\] with M = 4"),
    "dtype": ({"h": torch.zeros(2, 4).half(), "out_dtype": torch.float32}, "h must be torch"),
    "w_out": ({"w_hidden": WEIGHTS}, r"w_out must be \[A, F\] with F = 6"),
    "mixed": ({"w_hidden": torch.zeros(6, 4)}, "all weights and biases are packed"),
    "int8": ({"w_out": ops.pack_linear(torch.zeros(6, 4), "int8")}, "packed as bf16 or fp32"),
    "norm": ({"norm": ops.FinalNorm("batch")}, "norm.kind must be one of"),
    "scale": ({"norm": ops.FinalNorm("rms", scale=torch.zeros(3))}, r"norm.scale must be \[M\]"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    """An argument that does not fit is one sentence: name, expected, found."""
    given: dict[str, Any] = {"h": torch.zeros(2, 4), "w_hidden": None, "w_out": WEIGHTS}
    with pytest.raises(InputError, match=message):
        ops.action_unembed(**given | changes)
