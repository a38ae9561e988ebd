"""action_embed: the folded encoder against the unfolded network, on every instruction set."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import ops
from vlakern.errors import InputError, Unsupported
from vlakern.models import VLA, preset
from vlakern.models.vla import time_embedding
from vlakern.ops import _native
from vlakern.ops.action_embed.cases import (
    CASES,
    Case,
    make_inputs,
    op_arguments,
    plain_encoder,
)
from vlakern.ops.action_embed.reference import action_embed_reference
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
        y = ops.action_embed(**op_arguments(case, inputs), backend=backend)
    exact = plain_encoder(case, inputs, torch.float64)
    plain = plain_encoder(case, inputs, case.dtype)
    assert_accurate(y, exact, plain, "tokens")
    return y


@every_case
@every_way
def test_values(backend: str, isa: str, case: Case, rng: torch.Generator) -> None:
    """At most twice the error of the unfolded network in the same precision, against fp64."""
    check(case, make_inputs(case, rng), backend)


def test_fuzz(fuzz: range) -> None:
    """Random sizes, times and layers."""
    for seed in fuzz:
        pick = random.Random(seed)
        case = Case(
            pick.randrange(4),
            pick.randrange(7),
            pick.randint(1, 70),
            pick.randint(1, 90),
            pick.choice(("bf16", "fp32")),
            pick.choice(("shared", "R", "RH")),
            pick.choice((1, 2)),
        )
        try:
            check(case, make_inputs(case, generator(f"embed {seed}")), "cpu")
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {case!r}: {error}") from error


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_folding_loses_nothing(kind: str, rng: torch.Generator) -> None:
    """Against fp64 the folded network is as accurate as the unfolded one in the same precision."""
    case = Case(4, 16, 200, 512, kind, "R")
    inputs = make_inputs(case, rng)
    found = check(case, inputs, "cpu").double()
    exact = plain_encoder(case, inputs, torch.float64)
    plain = plain_encoder(case, inputs, case.dtype).double()
    assert float((found - exact).square().mean()) < 1.2 * float((plain - exact).square().mean())


@every_way
def test_is_the_models_encoder(backend: str, isa: str, rng: torch.Generator) -> None:
    """Folded weights of a VLA embed as it does, for every step of a solver."""
    torch.manual_seed(0)
    model = VLA(preset("tiny"))
    encoder, config = model.action_encoder, model.config
    taus = torch.arange(4) / 4
    embedding = time_embedding(taus, encoder.width, encoder.time)
    w1, w2, w3 = encoder.w1, encoder.w2, encoder.w3
    w_fold, table = ops.fold_action_encoder(w1.weight, w1.bias, w2.weight, w2.bias, embedding)
    x = torch.randn(2, config.chunk, config.action_dim, generator=rng)
    packed = ops.pack_linear(w_fold, "fp32"), ops.pack_linear(w3.weight, "fp32", bias=w3.bias)
    for step, tau in enumerate(taus):
        with torch.no_grad():
            expected = model.embed_actions(x, tau.expand(2))
        found = ops.action_embed(x, packed[0], table[step], packed[1], backend=backend)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("time", ["shared", "RH"])
def test_threads_do_not_change_bits(time: str, rng: torch.Generator) -> None:
    """One, two and three threads give the same bits."""
    case = Case(5, 16, 40, 96, "fp32", time)
    inputs = make_inputs(case, rng)
    given, found, before = op_arguments(case, inputs), [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(ops.action_embed(**given, backend="cpu"))
    torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


@every_way
def test_bound_call_repeats(backend: str, isa: str, rng: torch.Generator) -> None:
    """The call that action_embed_out returns reads x and its row of the table anew."""
    case = Case(1, 4, 6, 20, "fp32")
    inputs = make_inputs(case, rng)
    given = op_arguments(case, inputs)
    x = given.pop("x")[0].clone()
    out = poison(torch.empty(4, 20))
    bound = ops.action_embed_out(x, **given, out=out, backend=backend)
    assert torch.equal(out, ops.action_embed(x, **given, backend=backend))
    x.mul_(2.0)
    given["time"].add_(1.0)
    bound()
    assert torch.equal(out, ops.action_embed(x, **given, backend=backend))


def test_gradients_without_packing(rng: torch.Generator) -> None:
    """The definition is differentiable, by finite differences; packed weights are not."""
    x, w_in, time = (torch.randn(s, generator=rng).double() for s in ((3, 4), (5, 4), (3, 5)))
    w_out, b_out = torch.randn(5, 5, generator=rng).double(), torch.randn(5, generator=rng).double()
    leaves = tuple(one.requires_grad_() for one in (x, w_in, time, w_out, b_out))
    assert torch.autograd.gradcheck(action_embed_reference, leaves)
    leaf, weights = torch.zeros(3, 4, requires_grad=True), ops.pack_linear(w_in.float(), "fp32")
    with pytest.raises(InputError, match="no gradient"):
        ops.action_embed(leaf, weights, torch.zeros(5))


def test_opcheck_and_compile(rng: torch.Generator) -> None:
    """Schema and fake agree with the op; it compiles without a graph break."""
    case = Case(2, 3, 5, 16, "fp32", "R")
    inputs = make_inputs(case, rng)
    given = op_arguments(case, inputs)
    x = given.pop("x")
    a, b = given["w_in"], given["w_out"]
    time = given["time"].expand(2, 3, 16).reshape(6, 16)
    first, last = (a.data, a.n, a.k, a.kind), (b.data, b.n, b.k, b.kind, True)
    arguments = (x.flatten(0, 1), *first, time, *last, torch.float32, "auto")
    torch.library.opcheck(torch.ops.vlakern.action_embed.default, arguments)
    compiled = torch.compile(
        lambda x: ops.action_embed(x.sin(), **given), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(x), ops.action_embed(x.sin(), **given))


def bad(**changes: Any) -> dict[str, Any]:
    weights = ops.pack_linear(torch.zeros(6, 4), "fp32")
    return {"x": torch.zeros(2, 3, 4), "w_in": weights, "time": torch.zeros(6)} | changes


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "x": ({"x": torch.zeros(2, 3, 5)}, r"x must be \[N, A\] with A = 4"),
    "rank": ({"x": torch.zeros(4)}, r"x must be \[R, H, A\] or \[N, A\]"),
    "dtype": ({"x": torch.zeros(2, 3, 4).half(), "out_dtype": torch.float32}, "x must be torch"),
    "time": ({"time": torch.zeros(5)}, r"time must be \[M\] = \[6\]"),
    "times": ({"time": torch.zeros(3, 3, 6)}, r"time must be \[M\] = \[6\] or fit \[2, 3, 6\]"),
    "mixed": ({"w_out": torch.zeros(6, 6)}, "packed, too"),
    "w_out": ({"w_out": ops.pack_linear(torch.zeros(6, 5), "fp32")}, r"w_out must be \[M, M\]"),
    "bias": (
        {"w_in": ops.pack_linear(torch.zeros(6, 4), "fp32", bias=torch.zeros(6))},
        "w_in holds a bias",
    ),
    "int8": ({"w_in": ops.pack_linear(torch.zeros(6, 4), "int8")}, "packed as bf16 or fp32"),
}


@pytest.mark.parametrize(("changes", "message"), BAD.values(), ids=BAD)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    """An argument that does not fit is one sentence: name, expected, found."""
    given = bad(**changes)
    with pytest.raises((InputError, Unsupported), match=message):
        ops.action_embed(**given)
