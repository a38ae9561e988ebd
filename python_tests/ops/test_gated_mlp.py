"""gated_mlp: every backend, kind of weights and instruction set against the definition."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vlakern import ops
from vlakern.errors import InputError, Unsupported
from vlakern.ops import _native
from vlakern.ops.gated_mlp import mlp_workspace_bytes
from vlakern.ops.gated_mlp.cases import (
    CASES,
    Case,
    draw_case,
    exact_gated_mlp,
    make_inputs,
    plain_gated_mlp,
)
from vlakern.ops.linear import pack_linear
from vlakern.ops.linear.cases import exact_linear, plain_linear
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


def check_values(case: Case, rng: torch.Generator, backend: str) -> None:
    gate_up, down, inputs = make_inputs(case, rng)
    with poisoned_allocations():
        found = ops.gated_mlp(gate_up=gate_up, down=down, **inputs, backend=backend)
    if case.kind == "int8":
        # Beside a tie h is quantised one way or the other, so the second product takes the op's h.
        x, act = inputs["x"], inputs["activation"]
        h = ops.linear(x, gate_up, activation=act, out_dtype=torch.float32, backend=backend)
        rest = {"x": h, "residual": inputs.get("residual"), "activation": "none"}
        exact = exact_linear(down, rest)
        plain = plain_linear(down, down.unpack(), **rest, out_dtype=case.dtype)
    else:
        exact = exact_gated_mlp(gate_up, down, inputs)
        plain = plain_gated_mlp(gate_up, down, **inputs)
    assert_accurate(found, exact, plain, str(case))


@every_case
@every_way
def test_values(backend: str, isa: str, case: Case, rng: torch.Generator) -> None:
    """Values obey the accuracy rule, in memory that was poisoned."""
    check_values(case, rng, backend)


@pytest.mark.parametrize("isa", ISAS)
def test_fuzz(isa: str, fuzz: range) -> None:
    """Random cases obey the rule; a failure names the seed that repeats it."""
    for number in fuzz:
        seed = f"gated_mlp {number}"
        rng = generator(seed)
        case = draw_case(rng)
        try:
            check_values(case, rng, "cpu")
        except AssertionError as error:
            raise AssertionError(f"{isa}: rng = generator({seed!r}); {case!r}: {error}") from error


def test_is_the_two_products(rng: torch.Generator) -> None:
    """One call gives the bits of linear called twice."""
    gate_up, down, inputs = make_inputs(Case(17, 128, 200, 128), rng)
    x, residual = inputs["x"], inputs["residual"]
    hidden = ops.linear(x, gate_up, activation="silu_gate")
    expected = ops.linear(hidden, down, residual=residual)

    found = ops.gated_mlp(x, gate_up, down, activation="silu_gate", residual=residual)
    assert torch.equal(found, expected)


def test_threads_and_repeats_do_not_change_bits(rng: torch.Generator) -> None:
    """One, two and three threads give the same bits, again and again."""
    gate_up, down, inputs = make_inputs(Case(17, 128, 200, 128), rng)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3) * 80:
        torch.set_num_threads(threads)
        found.append(ops.gated_mlp(gate_up=gate_up, down=down, **inputs, backend="cpu"))
    torch.set_num_threads(before)
    assert all(torch.equal(one, found[0]) for one in found)


def test_bound_call_repeats_in_a_shared_workspace(rng: torch.Generator) -> None:
    """The residual may be the output, and the bound call goes on from where the memory stands."""
    gate_up, down, inputs = make_inputs(Case(5, 64, 96, 64), rng)
    x, residual = inputs["x"], inputs["residual"].clone()
    once = ops.gated_mlp(x, gate_up, down, activation="silu_gate", residual=residual)
    twice = ops.gated_mlp(x, gate_up, down, activation="silu_gate", residual=once)
    size = mlp_workspace_bytes(5, gate_up, down, "silu_gate")
    workspace = poison(torch.empty(size, dtype=torch.uint8))
    rest = {"activation": "silu_gate", "out": residual, "residual": residual}
    call = ops.gated_mlp_out(x, gate_up, down, **rest, workspace=workspace)
    poison(workspace)
    call()
    assert torch.equal(residual, twice)


def test_gradients_of_weights_as_they_are(rng: torch.Generator) -> None:
    """The same call trains, with torch's own products."""
    shapes = ((5, 8), (12, 8), (7, 6), (5, 7))
    leaves = [torch.randn(s, generator=rng, dtype=torch.float64).requires_grad_() for s in shapes]

    def call(x: Tensor, gate_up: Tensor, down: Tensor, residual: Tensor) -> Tensor:
        return ops.gated_mlp(x, gate_up, down, activation="silu_gate", residual=residual)

    assert torch.autograd.gradcheck(call, leaves)


def test_opcheck(rng: torch.Generator) -> None:
    """Schema, fake and autograd registrations agree with the op."""
    gate_up, down, inputs = make_inputs(Case(3, 8, 6, 5), rng)
    first = (gate_up.data, gate_up.n, gate_up.k, gate_up.kind, gate_up.has_bias)
    second = (down.data, down.n, down.k, down.kind, down.has_bias)
    rest = ("silu_gate", inputs["residual"], torch.bfloat16, "auto")
    given = (inputs["x"], *first, *second, *rest)
    torch.library.opcheck(torch.ops.vlakern.gated_mlp.default, given)


def test_compiles_without_a_graph_break(rng: torch.Generator) -> None:
    """torch.compile(fullgraph=True) traces the op."""
    gate_up, down, inputs = make_inputs(Case(3, 8, 6, 5), rng)

    def layer(x: Tensor) -> Tensor:
        return ops.gated_mlp(torch.tanh(x), gate_up, down, activation="silu_gate")

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(inputs["x"]), layer(inputs["x"]))


X = torch.zeros(2, 4)
GATE_UP, DOWN = pack_linear(torch.zeros(6, 4), gate=True), pack_linear(torch.zeros(5, 3))
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "activation": (lambda: ops.gated_mlp(X, GATE_UP, DOWN, activation="silu"), "one of silu_gate"),
    "x": (
        lambda: ops.gated_mlp(X[:, :3], GATE_UP, DOWN, activation="silu_gate"),
        r"x must be \[M, K\] with K = 4",
    ),
    "down": (
        lambda: ops.gated_mlp(X, GATE_UP, pack_linear(torch.zeros(5, 4)), activation="silu_gate"),
        "down must have K = F = 3",
    ),
    "not gated": (
        lambda: ops.gated_mlp(X, pack_linear(torch.zeros(6, 4)), DOWN, activation="silu_gate"),
        "packed with gate=True",
    ),
    "half packed": (
        lambda: ops.gated_mlp(X, GATE_UP, torch.zeros(5, 3), activation="silu_gate"),
        "both be packed, or neither",
    ),
    "residual": (
        lambda: ops.gated_mlp(X, GATE_UP, DOWN, activation="silu_gate", residual=X),
        r"residual must be \[M, N\] = \[2, 5\]",
    ),
    "gradient": (
        lambda: ops.gated_mlp(
            torch.zeros(2, 4, requires_grad=True), GATE_UP, DOWN, activation="silu_gate"
        ),
        "packed weights are for inference",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    """An argument that does not fit is one sentence: name, expected, found."""
    with pytest.raises(InputError, match=message):
        call()


def test_refuses_weights_as_they_are() -> None:
    """The native kernels take packed weights alone."""
    with pytest.raises(Unsupported, match="takes packed weights"):
        ops.gated_mlp(
            X, torch.zeros(6, 4), torch.zeros(5, 3), activation="silu_gate", backend="cpu"
        )
