"""linear: every backend, kind of weights and instruction set against the definition."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import ops
from vlakern.errors import InputError, Unsupported
from vlakern.ops import _native
from vlakern.ops.linear import PackedLinear, pack_linear, workspace_bytes
from vlakern.ops.linear.cases import (
    CASES,
    Case,
    draw_case,
    exact_linear,
    make_inputs,
    plain_linear,
)
from vlakern.ops.linear.packed import PANEL_KINDS
from vlakern.ops.linear.reference import (
    ACTIVATIONS,
    GATED,
    KINDS,
    activate,
    linear_reference,
    quantize_rows,
)
from vlakern.testing import assert_accurate, generator, poison, poisoned_allocations

BF16, F32 = torch.bfloat16, torch.float32
ISAS: list[str] = _native.native_info()["isas"]
WAYS = [("reference", ""), *(("cpu", isa) for isa in ISAS)]
ids = [f"{backend}{isa and '-'}{isa}" for backend, isa in WAYS]
every_way = pytest.mark.parametrize(("backend", "isa"), WAYS, ids=ids)
every_isa = pytest.mark.parametrize("isa", ISAS)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_kind = pytest.mark.parametrize("kind", PANEL_KINDS)


@pytest.fixture(autouse=True)
def forced_isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces the instruction set that the test's parameter names."""
    call = getattr(request.node, "callspec", None)
    if call is not None and call.params.get("isa"):
        monkeypatch.setenv("VLAKERN_CPU_ISA", call.params["isa"])


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


def worst_plain(packed: PackedLinear, inputs: dict[str, Any], exact: Tensor) -> Tensor:
    """Plain PyTorch's worst over orders of K: one order may be exact by luck where M N is small."""
    unpacked = packed.unpack()
    worst = plain_linear(packed, unpacked, **inputs)
    for seed in range(0 if packed.kind == "int8" else 4):
        order = torch.randperm(packed.k, generator=generator(str(seed)))
        moved = unpacked._replace(weight=unpacked.weight[:, order])
        plain = plain_linear(packed, moved, **inputs | {"x": inputs["x"][:, order]})
        worse = (plain.double() - exact).abs() > (worst.double() - exact).abs()
        worst = torch.where(worse, plain, worst)
    return worst


def check_values(case: Case, rng: torch.Generator, backend: str) -> None:
    packed, inputs = make_inputs(case, rng)
    with poisoned_allocations():
        found = ops.linear(weight=packed, **inputs, backend=backend)
    exact = exact_linear(packed, inputs)
    assert_accurate(found, exact, worst_plain(packed, inputs, exact), str(case))


@every_case
@every_way
def test_values(backend: str, isa: str, case: Case, rng: torch.Generator) -> None:
    """Values obey the accuracy rule, in memory that was poisoned."""
    check_values(case, rng, backend)


@every_isa
def test_fuzz(isa: str, fuzz: range) -> None:
    """Random cases obey the rule; a failure names the seed that repeats it."""
    for number in fuzz:
        seed = f"linear {number}"
        rng = generator(seed)
        case = draw_case(rng)
        try:
            check_values(case, rng, "cpu")
        except AssertionError:
            print(f"VLAKERN_CPU_ISA={isa}; rng = generator({seed!r}); {case!r}")
            raise


@every_kind
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(("n", "k"), [(2, 1), (34, 5), (64, 64), (70, 133), (0, 3), (6, 0)])
def test_unpacks_what_was_packed(kind: str, gate: bool, n: int, k: int, rng: torch.Generator):
    """Packing loses nothing but the rounding to the kind."""
    weight, bias = torch.randn(n, k, generator=rng), torch.randn(n, generator=rng)
    found = pack_linear(weight, kind, bias, gate).unpack()
    assert found.weight.dtype == KINDS[kind]
    assert found.bias is not None
    assert torch.equal(found.bias, bias)
    if kind == "int8":
        steps, scale = quantize_rows(weight)
        assert found.scale is not None
        assert torch.equal(found.weight.float(), steps)
        assert torch.equal(found.scale, scale)
        error = (weight - steps * scale[:, None]).abs()
        assert bool((error <= 0.5001 * scale[:, None]).all())
    else:
        assert found.scale is None
        assert torch.equal(found.weight, weight.to(KINDS[kind]))


@every_kind
@every_isa
def test_a_row_does_not_depend_on_the_others(isa: str, kind: str, rng: torch.Generator) -> None:
    """One row alone has the bits that it has among 60, whatever blocks the rows fall into."""
    packed = pack_linear(torch.randn(70, 2600, generator=rng), kind)
    x = torch.randn(60, 2600, generator=rng)
    whole = ops.linear(x, packed, backend="cpu")
    for m in (1, 2, 13, 14, 15, 17, 28, 29, 33, 50):
        assert same_bits(ops.linear(x[:m], packed, backend="cpu"), whole[:m])
    large = torch.cat([x] * 9)  # so large that K is cut into slabs
    assert same_bits(ops.linear(large, packed, backend="cpu")[-60:], whole)


@every_kind
def test_threads_do_not_change_bits(kind: str, rng: torch.Generator) -> None:
    """One, two and three threads give the same bits, again and again."""
    packed = pack_linear(torch.randn(320, 512, generator=rng), kind)
    x = torch.randn(33, 512, generator=rng).bfloat16()
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3) * 10:
        torch.set_num_threads(threads)
        found.append(ops.linear(x, packed, backend="cpu"))
    torch.set_num_threads(before)
    assert all(same_bits(one, found[0]) for one in found)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_every_isa_gives_the_same_bits(kind: str, activation: str, rng: torch.Generator) -> None:
    """fp32 and int8 are one result on all instruction sets (bf16 is not: one has its own sum)."""
    case = Case(19, 70, 1100, kind, F32, F32, activation, frozenset({"bias", "row_scale"}))
    packed, inputs = make_inputs(case, rng)
    found = []
    for isa in ISAS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLAKERN_CPU_ISA", isa)
            found.append(ops.linear(weight=packed, **inputs, backend="cpu"))
    assert all(same_bits(one, found[0]) for one in found)


def test_repeats_bitwise(rng: torch.Generator) -> None:
    """250 repeats give one result."""
    packed = pack_linear(torch.randn(128, 200, generator=rng), "bf16")
    x = torch.randn(17, 200, generator=rng)
    first = ops.linear(x, packed, backend="cpu")
    assert all(same_bits(ops.linear(x, packed, backend="cpu"), first) for _ in range(250))


@every_isa
@pytest.mark.parametrize("activation", ["silu", "gelu_erf", "gelu_tanh", "relu"])
def test_activations_over_their_whole_range(isa: str, activation: str) -> None:
    """Large, small and tiny arguments, each to fp32's accuracy; NaN stays NaN."""
    z = torch.cat(
        [torch.linspace(-120, 120, 4001), torch.tensor([0.0, 1e-30, -1e-30, 1e30, -1e30])]
    )
    packed = pack_linear(torch.ones(1, 1), "fp32")
    found = ops.linear(z[:, None], packed, activation=activation, backend="cpu")[:, 0]
    exact = activate(z.double(), activation)
    error = (found.double() - exact).abs() / z.abs().double().clamp(min=1)
    assert float(error.max()) < 3e-7
    nan = ops.linear(torch.full((1, 1), torch.nan), packed, activation=activation, backend="cpu")
    assert bool(nan.isnan().all())


@every_kind
@every_way
def test_what_is_not_finite_is_not_hidden(backend: str, isa: str, kind: str) -> None:
    """NaN and infinity in a row make that row NaN or infinite and no other."""
    packed = pack_linear(torch.ones(3, 40), kind)
    x = torch.ones(4, 40)
    x[1, 7], x[2, 39] = torch.nan, torch.inf
    found = ops.linear(x, packed, backend=backend).isfinite().all(1)
    assert found.tolist() == [True, False, False, True]


@every_isa
def test_residual_may_be_the_output(isa: str, rng: torch.Generator) -> None:
    """Added in place, also into padded rows, whose gaps stay as they were."""
    packed = pack_linear(torch.randn(70, 64, generator=rng))
    x = torch.randn(17, 64, generator=rng).bfloat16()
    full = torch.randn(17, 75, generator=rng).bfloat16()
    out, gap = full[:, :70], full[:, 70:].clone()
    expected = ops.linear(x, packed, residual=out, backend="cpu")
    ops.linear_out(x, packed, out=out, residual=out, backend="cpu")
    assert same_bits(out, expected)
    assert torch.equal(full[:, 70:], gap)


@every_way
def test_bound_call_repeats_in_a_shared_workspace(backend: str, isa: str, rng: torch.Generator):
    """The call that linear_out returns computes again from where the memory stands."""
    packed = pack_linear(torch.randn(64, 64, generator=rng), "int8")
    x, out = torch.randn(5, 64, generator=rng), torch.empty(5, 64)
    workspace = poison(torch.empty(workspace_bytes(5, packed, "none"), dtype=torch.uint8))
    call = ops.linear_out(x, packed, out=out, workspace=workspace, backend=backend)
    x.neg_()
    poison(out)
    poison(workspace)
    call()
    assert same_bits(out, ops.linear(x, packed, backend=backend))


@pytest.mark.parametrize("activation", ["none", "gelu_erf", "silu_gate", "gelu_tanh_gate"])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_gradients_of_weights_as_they_are(activation: str, dtype: Any, rng: torch.Generator):
    """The same call trains: gradients obey the rule against autograd of the definition in fp64."""
    names = ("x", "weight", "bias", "residual", "row_scale")
    columns = 12 if activation in GATED else 24
    shapes = ((9, 20), (24, 20), (24,), (9, columns), (9,))
    given = [torch.randn(shape, generator=rng).to(dtype) for shape in shapes]
    loss = torch.randn(9, columns, generator=rng).to(dtype)

    def gradients(call: Callable[..., Tensor], wide: torch.dtype) -> tuple[Tensor, ...]:
        leaves = {n: g.to(wide).requires_grad_() for n, g in zip(names, given, strict=True)}
        found = (call(**leaves, activation=activation) * loss.to(wide)).sum()
        return torch.autograd.grad(found, tuple(leaves.values()))

    def plain(x, weight, bias, residual, row_scale, activation):
        return activate((x @ weight.T) * row_scale[:, None] + bias, activation) + residual

    exact = gradients(linear_reference, torch.float64)
    rows = zip(names, gradients(ops.linear, dtype), exact, gradients(plain, dtype), strict=True)
    for name, ours, best, theirs in rows:
        assert_accurate(ours, best, theirs, f"gradient of {name}", "gradient")


def test_gradcheck(rng: torch.Generator) -> None:
    """The definition is differentiable as written, by finite differences."""
    shapes = ((3, 4), (6, 4), (6,), (3, 3), (3,))
    leaves = [torch.randn(s, generator=rng, dtype=torch.float64).requires_grad_() for s in shapes]

    def call(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, scale: Tensor) -> Tensor:
        rest = {"residual": residual, "row_scale": scale, "activation": "silu_gate"}
        return ops.linear(x, weight, bias=bias, **rest, backend="reference")

    assert torch.autograd.gradcheck(call, leaves)


@every_kind
def test_opcheck(kind: str, rng: torch.Generator) -> None:
    """Schema, fake and autograd registrations agree with the op."""
    packed = pack_linear(torch.randn(12, 7, generator=rng), kind, gate=True)
    x, residual = torch.randn(3, 7, generator=rng), torch.randn(3, 6, generator=rng)
    facts = (packed.n, packed.k, packed.kind, packed.gate, packed.has_bias)
    rest = (torch.randn(12, generator=rng), "silu_gate", residual, None, F32, "auto")
    torch.library.opcheck(torch.ops.vlakern.linear.default, (x, packed.data, *facts, *rest))


def test_compiles_without_a_graph_break(rng: torch.Generator) -> None:
    """torch.compile(fullgraph=True) traces packed weights, and weights with their gradients."""
    weight = torch.randn(12, 8, generator=rng)
    packed = pack_linear(weight, "fp32")
    x = torch.randn(3, 8, generator=rng)

    def packed_twice(x: Tensor) -> Tensor:
        return ops.linear(torch.tanh(x), packed, activation="silu", residual=x.new_ones(3, 12))

    compiled = torch.compile(packed_twice, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), packed_twice(x))

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return ops.linear(x, weight, activation="gelu_tanh_gate").square().sum()

    leaves = (x.requires_grad_(), weight.requires_grad_())
    trained = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(trained(*leaves), leaves)
    for found, expected in zip(ours, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        torch.testing.assert_close(found, expected)


def test_packed_weights_give_no_gradient() -> None:
    """Asking for one is an error at the call; without grad mode the call is served."""
    packed, x = pack_linear(torch.ones(4, 4)), torch.ones(2, 4).requires_grad_()
    with pytest.raises(InputError, match="packed weights are for inference"):
        ops.linear(x, packed)
    with torch.no_grad():
        assert ops.linear(x, packed).shape == (2, 4)


X, W = torch.zeros(2, 4), torch.zeros(6, 4)
BAD: dict[str, tuple[Callable[[], object], str]] = {
    "x shape": (lambda: ops.linear(torch.zeros(2, 5), pack_linear(W)), r"x must be \[M, K\] with"),
    "x dtype": (lambda: ops.linear(X.half(), pack_linear(W)), "x must be torch.float32 or"),
    "activation": (lambda: ops.linear(X, pack_linear(W), activation="elu"), "must be one of none"),
    "not gated": (
        lambda: ops.linear(X, pack_linear(W), activation="silu_gate"),
        "takes weights packed with gate=True",
    ),
    "gated": (lambda: ops.linear(X, pack_linear(W, gate=True)), "packed with gate=False"),
    "bias": (lambda: ops.linear(X, pack_linear(W), bias=torch.zeros(5)), r"bias must be \[N\] ="),
    "two biases": (
        lambda: ops.linear(X, pack_linear(W, bias=torch.zeros(6)), bias=torch.zeros(6)),
        "hold a bias already",
    ),
    "residual": (lambda: ops.linear(X, pack_linear(W), residual=X), r"residual must be \[M, C\]"),
    "row_scale": (
        lambda: ops.linear(X, pack_linear(W), row_scale=torch.zeros(3)),
        r"row_scale must be \[M\]",
    ),
    "layout": (
        lambda: ops.linear(X, PackedLinear(pack_linear(W).data, 6, 4, "bf16", layout=9)),
        "pack them again",
    ),
    "truncated": (
        lambda: ops.linear(X, PackedLinear(pack_linear(W).data[:40], 6, 4, "bf16"), backend="cpu"),
        "weights must be contiguous and hold 64",
    ),
    "kind": (lambda: pack_linear(W, "fp4"), "must be one of bf16, fp32, int8, fp8, got 'fp4'"),
    "weight": (lambda: pack_linear(W.int()), r"weight must be floating, \[N, K\]"),
    "odd gate": (lambda: pack_linear(W[:5], gate=True), "even number of rows, got 5"),
    "packed bias": (lambda: pack_linear(W, bias=torch.zeros(5)), r"bias must be \[N\] = \[6\]"),
    "plain shape": (lambda: ops.linear(X, torch.zeros(6, 5)), r"x must be \[M, K\] and weight"),
    "columns apart": (
        lambda: ops.linear_out(X, pack_linear(W), out=torch.zeros(2, 12)[:, ::2], backend="cpu"),
        "out must have adjacent columns, got a stride of 2",
    ),
    "small workspace": (
        lambda: ops.linear_out(
            X,
            pack_linear(W),
            out=torch.zeros(2, 6),
            workspace=torch.zeros(9, dtype=torch.uint8),
            backend="cpu",
        ),
        "workspace must be contiguous and hold",
    ),
}


@pytest.mark.parametrize(("call", "message"), BAD.values(), ids=BAD)
def test_bad_input(call: Callable[[], object], message: str) -> None:
    """An argument that does not fit is one sentence: name, expected, found."""
    with pytest.raises(InputError, match=message):
        call()


def test_refusals() -> None:
    """What a backend does not cover is refused with the reason."""
    with pytest.raises(Unsupported, match="cpu of linear refuses: takes packed weights"):
        ops.linear(X, W, backend="cpu")
    wide = torch.zeros(1, 70000)
    with pytest.raises(Unsupported, match="int8 sums hold K up to 65536, got 70000"):
        ops.linear(wide, pack_linear(wide, "int8"), backend="cpu")
    elsewhere = torch.zeros(2, 4, device="meta")
    out, packed = torch.zeros(2, 6, device="meta"), pack_linear(W.to("meta"))
    with pytest.raises(Unsupported, match="computes on the CPU"):
        ops.linear_out(elsewhere, packed, out=out, backend="cpu")


def test_works_from_many_threads(rng: torch.Generator) -> None:
    """Calls that meet in the pool do not disturb each other."""
    packed = pack_linear(torch.randn(512, 256, generator=rng))
    x = torch.randn(17, 256, generator=rng)
    expected = ops.linear(x, packed, backend="cpu")
    wrong: list[int] = []

    def work(number: int) -> None:
        torch.set_num_threads(2)
        for _ in range(20):
            if not torch.equal(ops.linear(x, packed, backend="cpu"), expected):
                wrong.append(number)

    before = torch.get_num_threads()
    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    torch.set_num_threads(before)
    assert wrong == []
