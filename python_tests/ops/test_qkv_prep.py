"""qkv_prep: every backend and instruction set against the definition."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import env, ops
from vlakern.errors import InputError, Unsupported
from vlakern.ops import _native
from vlakern.ops.qkv_prep.cases import (
    CASES,
    Case,
    draw_case,
    flat,
    make_inputs,
    plain_qkv_prep,
)
from vlakern.ops.qkv_prep.reference import qkv_prep_reference
from vlakern.testing import assert_accurate, generator, poison, poisoned_allocations

INTERPRETED = env.triton_interpret()
ISAS: list[str] = _native.native_info()["isas"]
# (backend, instruction set); the interpreter has a process of its own, see test_in_interpreter
WAYS = [("reference", ""), *(("cpu", isa) for isa in ISAS)]
WAYS += [("triton", "")] if INTERPRETED else []
ids = [f"{backend}{isa and '-'}{isa}" for backend, isa in WAYS]
every_way = pytest.mark.parametrize(("backend", "isa"), WAYS, ids=ids)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
LISTS = ("qkv", "q_weight", "k_weight")

Prep = Callable[..., tuple[Tensor, Tensor, Tensor]]


@pytest.fixture(autouse=True)
def forced_isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces the instruction set that the test's parameter names."""
    call = getattr(request.node, "callspec", None)
    if call is not None and call.params.get("isa"):
        monkeypatch.setenv("VLAKERN_CPU_ISA", call.params["isa"])


def changed(inputs: dict[str, Any], tensors: list[Tensor]) -> dict[str, Any]:
    """The same arguments with other floating tensors, in ``flat``'s order."""
    left, made = list(tensors), dict(inputs)
    for name in LISTS:
        made[name], left = left[: len(inputs[name])], left[len(inputs[name]) :]
    return made | {"cos": left[0], "sin": left[1]}


def exact(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with every floating tensor in fp64."""
    return changed(inputs, [one.double() for one in flat(inputs)])


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(
        one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)
    )


def reduced(case: Case, backend: str) -> Case:
    """The interpreter takes a millisecond a row, so it gets few of them."""
    if backend != "triton":
        return case
    return replace(case, tokens=tuple(min(one, 6) for one in case.tokens))


def with_backend(backend: str) -> Prep:
    return lambda **given: ops.qkv_prep(**given, backend=backend)


def gradients(prep: Prep, inputs: dict[str, Any], weights: list[Tensor]) -> list[Tensor]:
    """Gradients of a weighted sum of the results in all floating tensors."""
    leaves = [one.detach().requires_grad_() for one in flat(inputs)]
    found = prep(**changed(inputs, leaves))
    loss = sum((w.to(f.dtype) * f).sum() for w, f in zip(weights, found, strict=True))
    assert isinstance(loss, Tensor)
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]


def loss_weights(case: Case, rng: torch.Generator) -> list[Tensor]:
    """Rounded to the case's dtype, so that the exact gradients weigh the same."""
    heads = (case.heads, case.groups, case.groups)
    shapes = [(sum(case.tokens), one, case.head_dim) for one in heads]
    return [torch.randn(one, generator=rng).to(case.dtype).float() for one in shapes]


def check_values(inputs: dict[str, Any], backend: str) -> None:
    with poisoned_allocations():
        found = ops.qkv_prep(**inputs, backend=backend)
    best, plain = qkv_prep_reference(**exact(inputs)), plain_qkv_prep(**inputs)
    for name, one, right, baseline in zip("qkv", found, best, plain, strict=True):
        assert_accurate(one, right, baseline, name)


def check_gradients(case: Case, inputs: dict[str, Any], backend: str, rng: torch.Generator) -> None:
    weights = loss_weights(case, rng)
    with poisoned_allocations():
        ours = gradients(with_backend(backend), inputs, weights)
    best = gradients(qkv_prep_reference, exact(inputs), weights)
    plain = gradients(plain_qkv_prep, inputs, weights)
    for i, (one, right, baseline) in enumerate(zip(ours, best, plain, strict=True)):
        assert_accurate(one, right, baseline, f"gradient {i}", "gradient")


@every_case
@every_way
def test_values(backend: str, isa: str, case: Case, rng: torch.Generator) -> None:
    """Values obey the accuracy rule, in memory that was poisoned."""
    check_values(make_inputs(reduced(case, backend), rng), backend)


@every_case
@every_way
def test_gradients(backend: str, isa: str, case: Case, rng: torch.Generator) -> None:
    """Gradients of every floating tensor obey the rule against autograd of the definition."""
    case = reduced(case, backend)
    check_gradients(case, make_inputs(case, rng), backend, rng)


@pytest.mark.parametrize("backend", ["cpu", *(["triton"] if INTERPRETED else [])])
def test_random_cases(backend: str, fuzz: range) -> None:
    """Values and gradients of random cases; a failure names its seed."""
    for seed in fuzz if backend == "cpu" else fuzz[::50]:
        rng = torch.Generator().manual_seed(seed)
        case = reduced(draw_case(rng), backend)
        try:
            inputs = make_inputs(case, rng)
            check_values(inputs, backend)
            check_gradients(case, inputs, backend, rng)
        except AssertionError as error:
            pytest.fail(f"draw_case(torch.Generator().manual_seed({seed})) is {case}: {error}")


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("norm", [False, True])
def test_gradcheck(apart: bool, norm: bool, rng: torch.Generator) -> None:
    """The registered gradients are the derivatives of the definition, by finite differences."""
    weight_dtype = torch.float32 if norm else None
    case = Case((2, 3), 2, 1, 4, weight_dtype=weight_dtype, apart=apart, plus_one=True)
    inputs = exact(make_inputs(case, rng))
    leaves = tuple(one.clone().requires_grad_() for one in flat(inputs))
    assert torch.autograd.gradcheck(
        lambda *given: ops.qkv_prep(**changed(inputs, list(given))), leaves
    )


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_where_rows_go(backend: str) -> None:
    """q stays with its expert, k and v stand in joint order, and attention's rows are argsort."""
    first, second = torch.tensor([0, 2]), torch.tensor([1, 3, 4])
    rows = [first.int(), second.int()]
    joint = [torch.arange(3.0).repeat_interleave(2) + 10 * one[:, None] for one in (first, second)]
    still = torch.ones(5, 1), torch.zeros(5, 1)
    q, k, v = ops.qkv_prep(joint, [], [], *still, rows, heads=1, groups=1, backend=backend)
    assert q[:, 0, 0].tolist() == [0, 20, 10, 30, 40]
    assert k[:, 0, 0].tolist() == [1, 11, 21, 31, 41]
    assert v[:, 0, 0].tolist() == [2, 12, 22, 32, 42]
    order = torch.cat(rows).argsort()
    assert q[order, 0, 0].tolist() == [0, 10, 20, 30, 40]


@every_case
def test_every_isa_gives_the_same_bits(case: Case, rng: torch.Generator) -> None:
    """Sums have one order: one result, forward and backward, on all instruction sets."""
    inputs, weights = make_inputs(case, rng), loss_weights(case, rng)
    found = []
    for isa in ISAS:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLAKERN_CPU_ISA", isa)
            values = ops.qkv_prep(**inputs, backend="cpu")
            found.append([*values, *gradients(with_backend("cpu"), inputs, weights)])
    for other in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(found[0], other, strict=True))


def test_threads_do_not_change_bits(rng: torch.Generator) -> None:
    """A call large enough for several threads gives the bits of one thread."""
    case = Case((300, 211), 16, 8, 64)
    inputs, weights = make_inputs(case, rng), loss_weights(case, rng)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        values = ops.qkv_prep(**inputs, backend="cpu")
        found.append([*values, *gradients(with_backend("cpu"), inputs, weights)])
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(found[0], other, strict=True))


def test_repeats_bitwise(rng: torch.Generator) -> None:
    """250 repeats, forward and backward, give one result."""
    case = Case((70, 33), 4, 2, 34, torch.bfloat16)
    inputs, weights = make_inputs(case, rng), loss_weights(case, rng)

    def run() -> list[Tensor]:
        values = ops.qkv_prep(**inputs, backend="cpu")
        return [*values, *gradients(with_backend("cpu"), inputs, weights)]

    first = run()
    for _ in range(250):
        assert all(same_bits(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@every_way
def test_into_a_cache(backend: str, isa: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    """The bound call writes an expert into slices of longer buffers, casts, and nothing else."""
    inputs = make_inputs(Case((7, 5), 4, 2, 10), rng)
    expected = [one.to(dtype) for one in ops.qkv_prep(**inputs, backend=backend)]
    q = poison(torch.empty(12, 4, 10, dtype=dtype))
    cache = torch.full((2, 30, 2, 16), 7.0, dtype=dtype)
    k, v = cache[..., :10]
    shared = {name: inputs[name] for name in ("cos", "sin", "heads", "groups", "eps", "plus_one")}
    for i, part in enumerate((slice(0, 7), slice(7, 12))):
        one = {name: inputs[name][i] for name in ("q_weight", "k_weight", "rows")}
        outputs = {"q_out": q[part], "k_out": k, "v_out": v, "row_offset": 11}
        bound = ops.qkv_prep_out([inputs["qkv"][i]], **one, **shared, **outputs, backend=backend)
        q[part] = 0
        bound()
    for found, right in zip((q, k[11:23], v[11:23]), expected, strict=True):
        assert torch.equal(found, right)
    assert bool((cache[..., 10:] == 7.0).all())
    assert bool((cache[:, :11] == 7.0).all())
    assert bool((cache[:, 23:] == 7.0).all())


@pytest.mark.parametrize("apart", [False, True])
def test_opcheck(apart: bool, rng: torch.Generator) -> None:
    """Schema, fake and autograd registrations agree with the op."""
    case = Case((3, 2), 2, 1, 6, apart=apart)
    inputs = make_inputs(case, rng)
    names = (*LISTS, "cos", "sin", "rows", "heads", "groups", "eps", "plus_one")
    grads = [one.contiguous() for one in loss_weights(case, rng)]
    given = [inputs[name] for name in names]
    torch.library.opcheck(
        torch.ops.vlakern.qkv_prep_backward.default, (*grads, *given, "auto", True)
    )
    leaves = changed(inputs, [one.detach().requires_grad_() for one in flat(inputs)])
    given = [leaves[name] for name in names]
    torch.library.opcheck(torch.ops.vlakern.qkv_prep.default, (*given, "auto"))


def test_compiles_without_a_graph_break(rng: torch.Generator) -> None:
    """torch.compile(fullgraph=True) traces the op, forward and backward."""
    inputs = make_inputs(Case((3, 2), 2, 1, 6), rng)
    leaves = [one.detach().requires_grad_() for one in flat(inputs)[:-2]]
    angles = [inputs["cos"], inputs["sin"]]

    def loss(*given: Tensor) -> Tensor:
        q, k, v = ops.qkv_prep(**changed(inputs, [torch.tanh(x) for x in given] + angles))
        return (q.sum(1) * (k + v)[:, 0]).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    ours = torch.autograd.grad(compiled(*leaves), leaves)
    for found, expected in zip(ours, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        torch.testing.assert_close(found, expected)


def bad(**changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "qkv": [torch.zeros(3, 32), torch.zeros(2, 32)],
        "q_weight": [torch.ones(8)] * 2,
        "k_weight": [torch.ones(8)] * 2,
        "cos": torch.ones(5, 4),
        "sin": torch.zeros(5, 4),
        "rows": [torch.tensor([0, 1, 2]).int(), torch.tensor([3, 4]).int()],
        "heads": 2,
        "groups": 1,
    }
    return arguments | changes


BAD = {
    "tensors": (bad(qkv=[torch.zeros(3, 32)]), "qkv must be one tensor per expert, or q, k and v"),
    "width": (bad(heads=3), r"qkv\[0\] must be \[E, 5·D\] with an even D, got \[3, 32\]"),
    "rows of qkv": (bad(qkv=[torch.zeros(3, 32)] * 2), r"qkv\[1\] must be \[2, 32\]"),
    "dtype": (bad(qkv=[torch.zeros(3, 32).int()] * 2), r"qkv\[0\] must be torch.float32"),
    "one weight": (bad(q_weight=[torch.ones(8)]), "q_weight must be one per expert"),
    "k alone": (bad(q_weight=[]), "k_weight must be one per expert, 2, or none, for q and k"),
    "weight": (bad(k_weight=[torch.ones(7)] * 2), r"k_weight\[0\] must be \[8\], got \[7\]"),
    "cos": (bad(cos=torch.ones(5, 8)), r"cos must be \[5, 4\], got \[5, 8\]"),
    "sin": (bad(sin=torch.ones(4, 4)), r"sin must be \[5, 4\], got \[4, 4\]"),
    "rows": (bad(rows=[torch.arange(3), torch.arange(2)]), r"rows\[0\] must be torch.int32"),
    "heads": (bad(heads=0), "heads and groups must be 1 or more"),
    "eps": (bad(eps=-1.0), "eps must be 0 or more"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input(arguments: dict[str, Any], message: str) -> None:
    """An argument that does not fit is one sentence: name, expected, found."""
    with pytest.raises(InputError, match=message):
        ops.qkv_prep(**arguments)


@pytest.mark.parametrize(
    ("row", "message"), [(3, "got 3 twice"), (5, "got 5"), (-1, "got -1")], ids=str
)
def test_rows_must_be_a_permutation(row: int, message: str) -> None:
    """A joint row that is missing, doubled or outside is refused before anything is written."""
    rows = [torch.tensor([0, 1, 2]).int(), torch.tensor([3, row]).int()]
    with pytest.raises(InputError, match=rf"rows must be a permutation of \[0, 5\), {message}"):
        ops.qkv_prep(**bad(rows=rows), backend="cpu")


def test_bound_call_stays_inside() -> None:
    """Rows that have left the cache since the call was bound are refused."""
    x, weight, rows = torch.zeros(3, 32), torch.ones(8), torch.tensor([0, 1, 2]).int()
    k, v = torch.zeros(2, 6, 1, 8)
    given: dict[str, Any] = {"q_out": torch.zeros(3, 2, 8), "k_out": k, "v_out": v}
    cos, sin = torch.ones(5, 4), torch.ones(5, 4)
    given |= {"heads": 2, "groups": 1, "row_offset": 2, "backend": "cpu"}
    bound = ops.qkv_prep_out([x], weight, weight, cos, sin, rows, **given)
    rows[1] = 4
    with pytest.raises(InputError, match="row 4 with offset 2 must lie in the 5 rows of cos and"):
        bound()
    apart: dict[str, Any] = given | {"k_out": torch.zeros(6, 1, 16)[..., ::2]}
    with pytest.raises(InputError, match="k_out must have adjacent elements in a head"):
        ops.qkv_prep_out([x], weight, weight, cos, sin, rows, **apart)


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_refuses_fp64(backend: str) -> None:
    """Only the definition takes fp64; auto finds it, a name is refused."""
    names = ("qkv", "q_weight", "k_weight")
    wide = bad(**{name: [one.double() for one in bad()[name]] for name in names})
    wide |= {"cos": wide["cos"].double(), "sin": wide["sin"].double()}
    assert ops.qkv_prep(**wide)[0].dtype == torch.float64
    with pytest.raises(Unsupported, match=f"{backend} of qkv_prep refuses: "):
        ops.qkv_prep(**wide, backend=backend)


@pytest.mark.skipif(not INTERPRETED, reason="Triton refuses the CPU first")
def test_triton_refuses_wide_tokens() -> None:
    """Heads that no program can hold are refused with the limit."""
    x, rows = torch.zeros(1, 258 * 128), [torch.zeros(1).int()]
    with pytest.raises(Unsupported, match="takes H·D of at most 16384, not 32768"):
        ops.qkv_prep(
            [x], [], [], torch.ones(1, 64), torch.ones(1, 64), rows, heads=256, groups=1,
            backend="triton",
        )  # fmt: skip


def test_in_interpreter(run_interpreted: Callable[[str], int]) -> None:
    """The Triton kernels obey every law above in Triton's interpreter."""
    assert run_interpreted(__file__) >= 2 * len(CASES)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["triton", "reference"])
@every_case
def test_gpu(backend: str, case: Case, request: pytest.FixtureRequest) -> None:
    """On the GPU, too, values and gradients obey the rule."""
    inputs = make_inputs(case, generator(request.node.name, "cuda"))
    check_values(inputs, backend)
    weights = [one.cuda() for one in loss_weights(case, generator(request.node.name))]
    ours = gradients(with_backend(backend), inputs, weights)
    best = gradients(qkv_prep_reference, exact(inputs), weights)
    plain = gradients(plain_qkv_prep, inputs, weights)
    for i, (one, right, baseline) in enumerate(zip(ours, best, plain, strict=True)):
        assert_accurate(one, right, baseline, f"gradient {i}", "gradient")
