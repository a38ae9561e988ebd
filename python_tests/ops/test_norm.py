"""norm: every backend and instruction set against the definition."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import env, ops
from vlakern.errors import InputError, Unsupported
from vlakern.ops import _native
from vlakern.ops.norm.cases import CASES, FLOAT_NAMES, Case, draw_case, make_inputs, plain_norm
from vlakern.ops.norm.reference import KINDS, norm_reference
from vlakern.testing import assert_accurate, generator, poison, poisoned_allocations

INTERPRETED = env.triton_interpret()
ISAS: list[str] = _native.native_info()["isas"]
# (backend, instruction set); the interpreter has a process of its own, see test_in_interpreter
WAYS = [("reference", ""), *(("cpu", isa) for isa in ISAS)]
WAYS += [("triton", "")] if INTERPRETED else []
ids = [f"{backend}{isa and '-'}{isa}" for backend, isa in WAYS]
every_way = pytest.mark.parametrize(("backend", "isa"), WAYS, ids=ids)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
EVERYTHING = Case(8, 6, "layer", ("weight", "bias", "scale", "shift", "residual", "gate"), groups=2)


@pytest.fixture(autouse=True)
def forced_isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces the instruction set that the test's parameter names."""
    call = getattr(request.node, "callspec", None)
    if call is not None and call.params.get("isa"):
        monkeypatch.setenv("VLAKERN_CPU_ISA", call.params["isa"])


def exact(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with every floating tensor in fp64."""
    return {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in inputs.items()
    }


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


def reduced(case: Case, backend: str) -> Case:
    """The interpreter takes a millisecond a row, so it gets few of them."""
    rows = case.rows if backend != "triton" else min(case.rows, 4 * max(case.groups, 1))
    return replace(case, rows=rows)


Norm = Callable[..., tuple[Tensor, Tensor]]


def gradients(norm: Norm, inputs: dict[str, Any], weights: list[Tensor]) -> dict[str, Tensor]:
    """Gradients of a weighted sum of y and h in all floating arguments."""
    leaves: dict[str, Any] = {
        name: inputs[name].detach().requires_grad_() for name in FLOAT_NAMES if name in inputs
    }
    found = norm(**inputs | leaves)
    loss = sum((w.to(f.dtype) * f).sum() for w, f in zip(weights, found, strict=True))
    assert isinstance(loss, Tensor)
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def loss_weights(case: Case, rng: torch.Generator) -> list[Tensor]:
    """Rounded to the case's dtype, so that the exact gradients weigh the same."""
    shape = (case.rows, case.width)
    return [torch.randn(shape, generator=rng).to(case.dtype).float() for _ in range(2)]


def check_values(inputs: dict[str, Any], backend: str, kind: str = "value") -> None:
    with poisoned_allocations():
        found = ops.norm(**inputs, backend=backend)
    best, plain = norm_reference(**exact(inputs)), plain_norm(**inputs)
    for name, one, right, baseline in zip("yh", found, best, plain, strict=True):
        assert_accurate(one, right, baseline, name, kind)


def check_gradients(
    case: Case, inputs: dict[str, Any], backend: str, rng: torch.Generator, kind: str = "gradient"
) -> None:
    weights = loss_weights(case, rng)
    with poisoned_allocations():
        ours = gradients(lambda **given: ops.norm(**given, backend=backend), inputs, weights)
    best = gradients(norm_reference, exact(inputs), weights)
    plain = gradients(plain_norm, inputs, weights)
    for name, gradient in ours.items():
        assert_accurate(gradient, best[name], plain[name], f"gradient of {name}", kind)


@every_case
@every_way
def test_values(backend: str, isa: str, case: Case, rng: torch.Generator) -> None:
    """Values obey the accuracy rule, in memory that was poisoned."""
    check_values(make_inputs(reduced(case, backend), rng), backend)


@every_case
@every_way
def test_gradients(backend: str, isa: str, case: Case, rng: torch.Generator) -> None:
    """Gradients of every floating argument obey the rule against autograd of the definition."""
    case = reduced(case, backend)
    check_gradients(case, make_inputs(case, rng), backend, rng)


@pytest.mark.parametrize("backend", ["cpu", *(["triton"] if INTERPRETED else [])])
def test_random_cases(backend: str, fuzz: range) -> None:
    """Values and gradients of random cases; a failure names its seed."""
    # Plain PyTorch's error over a few numbers may be small by luck, once in 200 cases by half.
    lucky = "documented gradient"
    for seed in fuzz if backend == "cpu" else fuzz[::10]:
        rng = torch.Generator().manual_seed(seed)
        case = reduced(draw_case(rng), backend)
        try:
            inputs = make_inputs(case, rng)
            check_values(inputs, backend, lucky)
            check_gradients(case, inputs, backend, rng, lucky)
        except AssertionError as error:
            pytest.fail(f"draw_case(torch.Generator().manual_seed({seed})) is {case}: {error}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("indexed", [False, True])
def test_gradcheck(kind: str, indexed: bool, rng: torch.Generator) -> None:
    """The registered gradients are the derivatives of the definition, by finite differences."""
    parts = tuple(one for one in EVERYTHING.parts if one != "bias" or kind == "layer")
    case = Case(6, 5, kind, parts, groups=2, indexed=indexed)
    inputs = exact(make_inputs(case, rng))
    names = tuple(name for name in FLOAT_NAMES if name in inputs)
    leaves = tuple(inputs[name].clone().requires_grad_() for name in names)

    def run(*given: Tensor) -> tuple[Tensor, Tensor]:
        changed: dict[str, Any] = dict(zip(names, given, strict=True))
        return ops.norm(**inputs | changed)

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("only", [0, 1], ids=["y", "h"])
def test_gradient_of_one_output(only: int, rng: torch.Generator) -> None:
    """A loss that reads y alone, or h alone, has the right gradients."""
    inputs = make_inputs(EVERYTHING, rng)
    weights = loss_weights(EVERYTHING, rng)
    weights[1 - only].zero_()
    names = ("x", "residual", "gate")

    def of(norm: Norm) -> tuple[Tensor, ...]:
        leaves: dict[str, Any] = {name: inputs[name].clone().requires_grad_() for name in names}
        found = norm(**inputs | leaves)[only]
        return torch.autograd.grad((found * weights[only]).sum(), list(leaves.values()))

    torch.testing.assert_close(of(ops.norm), of(norm_reference))


@every_case
def test_every_isa_gives_the_same_bits(case: Case, rng: torch.Generator) -> None:
    """Sums have one order: one result, forward and backward, on all instruction sets."""
    inputs, weights = make_inputs(case, rng), loss_weights(case, rng)
    found = []
    for isa in ISAS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLAKERN_CPU_ISA", isa)
            values = ops.norm(**inputs, backend="cpu")
            cpu = gradients(lambda **given: ops.norm(**given, backend="cpu"), inputs, weights)
            found.append([*values, *cpu.values()])
    for other in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize(
    "case",
    [
        Case(700, 1024, "layer", EVERYTHING.parts, groups=7, indexed=True),
        Case(2000, 515, parts=("weight", "residual"), dtype=torch.bfloat16),
    ],
    ids=str,
)
def test_threads_do_not_change_bits(case: Case, rng: torch.Generator) -> None:
    """A call large enough for several threads gives the bits of one thread."""
    inputs, weights = make_inputs(case, rng), loss_weights(case, rng)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        values = ops.norm(**inputs, backend="cpu")
        cpu = gradients(lambda **given: ops.norm(**given, backend="cpu"), inputs, weights)
        found.append([*values, *cpu.values()])
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(found[0], other, strict=True))


@every_way
def test_bound_call(backend: str, isa: str, rng: torch.Generator) -> None:
    """norm_out gives norm's bits, may overwrite its inputs, and repeats on the same memory."""
    inputs = make_inputs(Case(5, 37, parts=("weight", "residual")), rng)
    y, h = ops.norm(**inputs, backend=backend)
    y_out = poison(torch.empty_like(y))
    bound = ops.norm_out(**inputs, y_out=y_out, h_out=inputs["x"], backend=backend)
    assert torch.equal(y_out, y)
    assert torch.equal(inputs["x"], h)
    again, _ = ops.norm(**inputs, backend=backend)
    bound()
    assert torch.equal(y_out, again)


@every_way
def test_without_residual_h_is_x(backend: str, isa: str, rng: torch.Generator) -> None:
    """No copy: h is the very tensor that was given, and its gradient passes through."""
    inputs = make_inputs(Case(5, 37), rng)
    assert ops.norm(**inputs, backend=backend)[1] is inputs["x"]
    y_out = inputs["x"]
    y, _ = ops.norm(**inputs, backend=backend)
    ops.norm_out(**inputs, y_out=y_out, backend=backend)
    assert torch.equal(y_out, y)


@every_way
def test_writes_nothing_else(backend: str, isa: str, rng: torch.Generator) -> None:
    """Outputs whose rows are apart leave the memory between them as it was."""
    inputs = make_inputs(Case(5, 19, parts=("weight", "residual")), rng)
    full = torch.full((2, 5, 24), 7.0)
    y_out, h_out = poison(full[0, :, :19]), poison(full[1, :, :19])
    ops.norm_out(**inputs, y_out=y_out, h_out=h_out, backend=backend)
    assert bool((full[..., 19:] == 7.0).all())
    assert torch.equal(y_out, ops.norm(**inputs, backend=backend)[0])


def test_repeats_bitwise(rng: torch.Generator) -> None:
    """250 repeats, forward and backward, give one result."""
    case = Case(300, 33, "layer", EVERYTHING.parts, groups=3, indexed=True)
    inputs, weights = make_inputs(case, rng), loss_weights(case, rng)

    def run() -> list[Tensor]:
        cpu = gradients(lambda **given: ops.norm(**given, backend="cpu"), inputs, weights)
        return [*ops.norm(**inputs, backend="cpu"), *cpu.values()]

    first = run()
    for _ in range(250):
        assert all(same_bits(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("residual", [False, True])
def test_opcheck(residual: bool, rng: torch.Generator) -> None:
    """Schema, fake and autograd registrations agree with the op."""
    inputs = make_inputs(EVERYTHING if residual else Case(3, 5), rng)
    names = ("x", "weight", "bias", "scale", "shift", "gate", "residual", "row_group")
    given = [inputs.get(name) for name in names]
    settings = (inputs["kind"], inputs["eps"], "auto")
    h = given[0]
    assert isinstance(h, Tensor)
    backward = (h.clone(), h.clone() if residual else None, *given, *settings)
    torch.library.opcheck(torch.ops.vlakern.norm_backward.default, backward)
    leaves = [one.requires_grad_() if isinstance(one, Tensor) else one for one in given]
    torch.library.opcheck(torch.ops.vlakern.norm.default, (*leaves, *settings))


def test_compiles_without_a_graph_break(rng: torch.Generator) -> None:
    """torch.compile(fullgraph=True) traces the op, forward and backward."""
    inputs = make_inputs(EVERYTHING, rng)
    x, w = inputs.pop("x").requires_grad_(), inputs.pop("weight").requires_grad_()

    def loss(x: Tensor, w: Tensor) -> Tensor:
        y, h = ops.norm(torch.tanh(x), w, **inputs)
        return (y * h).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(x, w), (x, w))
    for found, expected in zip(ours, torch.autograd.grad(loss(x, w), (x, w)), strict=True):
        torch.testing.assert_close(found, expected)


X = torch.zeros(4, 6)
BAD = {
    "x rank": ({"x": X[0]}, r"x must be \[R, M\] .*, got \[6\]"),
    "no columns": ({"x": X[:, :0]}, "x must be"),
    "x dtype": ({"x": X.int()}, "x must be torch.float32 or"),
    "kind": ({"kind": "batch"}, "kind must be one of rms.*got 'batch'"),
    "eps": ({"eps": -1.0}, "eps must be 0 or more"),
    "weight": ({"weight": X}, r"weight must be \[M\] = \[6\], got \[4, 6\]"),
    "bias": ({"bias": X[0]}, "kind 'rms' takes no bias"),
    "gate alone": ({"gate": X[0]}, "gate scales a residual"),
    "residual": ({"residual": X[:3]}, "residual must be"),
    "shapes": ({"scale": X[0], "shift": X[:2]}, "scale, shift and gate must have one shape"),
    "scale": ({"scale": X[:2, :3]}, r"scale must be \[M\] = \[6\] or \[B, M\]"),
    "groups": ({"scale": X[:3]}, "4 rows are not equal runs of 3 groups"),
    "index alone": ({"row_group": torch.zeros(4).int()}, "row_group needs a scale"),
    "index dtype": ({"row_group": torch.zeros(4), "scale": X}, "row_group must be torch.int32"),
    "mixed fp64": ({"weight": X[0].double()}, "weight must be torch.float32"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    """An argument that does not fit is one sentence: name, expected, found."""
    given: dict[str, Any] = {"x": X} | arguments
    with pytest.raises(InputError, match=message):
        ops.norm(**given)


@pytest.mark.parametrize("group", [-1, 2])
def test_group_out_of_range(group: int) -> None:
    """A row whose group does not exist is refused, in a bound call and backward, too."""
    index = torch.tensor([0, 1, 1, 0], dtype=torch.int32)
    x, scale = torch.ones(4, 6), torch.ones(2, 6)
    bound = ops.norm_out(x, scale=scale, row_group=index, y_out=torch.empty(4, 6), backend="cpu")
    index[2] = group
    message = rf"row_group must be in \[0, 2\), got {group} for row 2"
    with pytest.raises(InputError, match=message):
        bound()
    given = (x, None, x, None, None, scale, None, None, None, index, "rms", 0.0, "cpu")
    with pytest.raises(InputError, match=message):
        torch.ops.vlakern.norm_backward(*given)


def test_bad_outputs() -> None:
    """Outputs that do not fit, or whose elements are apart, are refused."""
    with pytest.raises(InputError, match=r"y must be \[R, M\]"):
        ops.norm_out(X, y_out=torch.zeros(4, 5))
    with pytest.raises(InputError, match="a call with a residual needs h_out"):
        ops.norm_out(X, residual=X, y_out=torch.zeros(4, 6))
    with pytest.raises(InputError, match="y must have adjacent elements in a row, got stride 2"):
        ops.norm_out(X, y_out=torch.zeros(4, 12)[:, ::2], backend="cpu")
    with pytest.raises(InputError, match="y is written, but its elements share memory"):
        ops.norm_out(X, y_out=torch.zeros(1, 6).expand(4, 6), backend="cpu")


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_refuses_fp64(backend: str) -> None:
    """Only the definition takes fp64; auto finds it, a name is refused."""
    assert ops.norm(X.double())[0].dtype == torch.float64
    with pytest.raises(Unsupported, match=f"{backend} of norm refuses: "):
        ops.norm(X.double(), backend=backend)


@pytest.mark.skipif(not INTERPRETED, reason="Triton refuses the CPU first")
def test_triton_refuses_wide_rows() -> None:
    """A row that no program can hold is refused with the limit."""
    with pytest.raises(Unsupported, match="takes rows of at most 16384, not 16385"):
        ops.norm(torch.zeros(1, 16385), backend="triton")


def test_in_interpreter(run_interpreted: Callable[[str], int]) -> None:
    """The Triton kernels obey every law above in Triton's interpreter."""
    assert run_interpreted(__file__) >= 2 * len(CASES)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "reference"])
@every_case
def test_gpu(backend: str, case: Case, request: pytest.FixtureRequest) -> None:
    """On the GPU, too, values and gradients obey the rule."""
    rng = generator(request.node.name, "cuda")
    inputs = make_inputs(case, rng)
    check_values(inputs, backend)
    weights = [one.cuda() for one in loss_weights(case, generator(request.node.name))]
    ours = gradients(lambda **given: ops.norm(**given, backend=backend), inputs, weights)
    best = gradients(norm_reference, exact(inputs), weights)
    plain = gradients(plain_norm, inputs, weights)
    for name, gradient in ours.items():
        assert_accurate(gradient, best[name], plain[name], f"gradient of {name}", "gradient")
