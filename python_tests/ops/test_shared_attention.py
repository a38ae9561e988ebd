"""shared_attention: every backend and instruction set against a dense boolean mask in fp64."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import env, ops
from vlakern.ops import _native
from vlakern.ops._dispatch import backends_of
from vlakern.ops.shared_attention import KvEnd
from vlakern.ops.shared_attention.cases import CASES, Case, Inputs, make, random_case
from vlakern.ops.shared_attention.reference import shared_attention_reference
from vlakern.testing import assert_accurate, generator, poison, poisoned_allocations
from vlakern.testing.compare import largest_error

INTERPRETED = env.triton_interpret()
NAMES = [backend.name for backend in backends_of("shared_attention")]
ISAS: list[str] = _native.native_info()["isas"] if "cpu" in NAMES else []
# (backend, instruction set); the interpreter has a process of its own, see test_in_interpreter
WAYS = [("reference", ""), *(("cpu", isa) for isa in ISAS)]
WAYS += [("triton", "")] if INTERPRETED and "triton" in NAMES else []
every_way = pytest.mark.parametrize(
    ("backend", "isa"), WAYS, ids=[f"{name}{isa and '-'}{isa}" for name, isa in WAYS]
)
every_case = pytest.mark.parametrize("case", CASES, ids=str)
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
SHARED = next(case for case in CASES if case.name == "one prefix shared by several rows")
FIELDS = ("q_THD", "k_SGD", "v_SGD", "prefix_k_PGD", "prefix_v_PGD")


@pytest.fixture(autouse=True)
def forced_isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forces the instruction set that the test's parameter names."""
    call = getattr(request.node, "callspec", None)
    if call is not None and call.params.get("isa"):
        monkeypatch.setenv("VLAKERN_CPU_ISA", call.params["isa"])


def tensors(given: Inputs) -> list[Tensor]:
    found = [getattr(given, name) for name in FIELDS]
    return [tensor for tensor in found if tensor is not None]


def replaced(given: Inputs, new: list[Tensor]) -> Inputs:
    return dataclasses.replace(given, **dict(zip(FIELDS, new, strict=False)))


def cast(given: Inputs, dtype: torch.dtype) -> Inputs:
    """Copies in another dtype, with the strides of the given ones."""
    return replaced(given, [x.detach().to(dtype, copy=True) for x in tensors(given)])


def run(given: Inputs, backend: str = "auto", **options: Any) -> tuple[Tensor, Tensor]:
    """The op on a case's inputs."""
    q, k, v, pk, pv = (getattr(given, name) for name in FIELDS)
    return ops.shared_attention(
        q, k, v, given.who, pk, pv, rows=given.rows_T, backend=backend, **options
    )


def block_mask(case: Case, document: int) -> Tensor:
    """bool [own, prefix + own] from block(j) <= block(i), with no word of ``kv_end``."""
    block = torch.tensor(
        [b for b, size in enumerate(case.blocks[document]) for _ in range(size)], dtype=torch.int64
    )
    prefix = case.prefixes[case.index[document]] if case.index else 0
    key_block = torch.cat([torch.full((prefix,), -1), block])
    visible = key_block[None, :] <= block[:, None]
    visible[: case.blind] = False
    return visible


def dense(case: Case, given: Inputs, early: bool = False) -> tuple[Tensor, Tensor]:
    """Document by document and head by head, in the inputs' own dtype.

    ``early`` scales q and k before their product, as torch's own attention does.
    """
    root = math.sqrt(math.sqrt(case.head_dim))
    joint = torch.arange(len(given.q_THD)) if given.rows_T is None else given.rows_T.long()
    q_THD, rows, lse, begin = given.q_THD[joint], [], [], 0
    for document, blocks in enumerate(case.blocks):
        own = slice(begin, begin + sum(blocks))
        begin = own.stop
        k_KGD, v_KGD = given.k_SGD[own], given.v_SGD[own]
        if given.prefix_k_PGD is not None and given.prefix_v_PGD is not None:
            before = sum(case.prefixes[: case.index[document]])
            cached = slice(before, before + case.prefixes[case.index[document]])
            k_KGD = torch.cat([given.prefix_k_PGD[cached], k_KGD])
            v_KGD = torch.cat([given.prefix_v_PGD[cached], v_KGD])
        visible = block_mask(case, document)
        for h in range(case.heads):
            g = h // (case.heads // case.groups)
            q, k = q_THD[own, h], k_KGD[:, g]
            score = (q / root) @ (k / root).T if early else q @ k.T / root**2
            score = score.masked_fill(~visible, -torch.inf)
            seen = visible.any(1, keepdim=True)
            weight = torch.where(seen, score, 0).softmax(-1)
            rows.append(torch.where(seen, weight @ v_KGD[:, g], 0))
            lse.append(score.logsumexp(-1))
    out_THD, lse_TH = torch.empty_like(given.q_THD), given.q_THD.new_empty(given.q_THD.shape[:2])
    joined = [list(zip(*[iter(each)] * case.heads, strict=True)) for each in (rows, lse)]
    if case.blocks:
        out_THD[joint] = torch.cat([torch.stack(heads, dim=1) for heads in joined[0]])
        lse_TH[joint] = torch.cat([torch.stack(heads, dim=1) for heads in joined[1]])
    return out_THD, lse_TH.to(torch.promote_types(lse_TH.dtype, torch.float32))


def finite(lse: Tensor) -> Tensor:
    """-inf, which is exact or wrong, as 0, so that errors of the rest can be measured."""
    return torch.where(lse == -torch.inf, 0, lse)


ROLLS = (0, 1, 3, 5)


def rolled(given: Inputs, by: int) -> Inputs:
    """The same attention with the numbers of every head in another order."""
    return replaced(given, [x.roll(by, -1) for x in tensors(given)])


def assert_as_plain(
    found: Tensor, exact: Tensor, plain: list[Tensor], what: str, kind: str = "value"
) -> None:
    """The rule against the worst of several orders: a few numbers may be exact by luck."""
    worst = max(plain, key=lambda one: largest_error(one, exact))
    assert_accurate(found, exact, worst, what, kind)


def check_values(case: Case, given: Inputs, backend: str) -> None:
    exact_out, exact_lse = dense(case, cast(given, torch.float64))
    plain = [(run(given, "reference"), 0)]
    plain += [(dense(case, rolled(given, by), by > 0), by) for by in ROLLS]
    with poisoned_allocations():
        out, lse = run(given, backend)
    assert_as_plain(out, exact_out, [x.roll(-by, -1) for (x, _), by in plain], f"{case}: out")
    assert torch.equal(lse == -torch.inf, exact_lse == -torch.inf)
    # An lse that is off by a unit in the last place is as good as any that was rounded once.
    unit = finite(exact_lse).to(lse.dtype) * (1 + torch.finfo(lse.dtype).eps)
    plain_lse = [unit, *(finite(x) for (_, x), _ in plain)]
    assert_as_plain(finite(lse), finite(exact_lse), plain_lse, f"{case}: lse")


def gradients(
    given: Inputs, weights: list[Tensor], call: Callable[..., tuple[Tensor, Tensor]]
) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors(given)]
    out, lse = call(replaced(given, leaves))
    loss = (weights[0].to(out.dtype) * out).sum() + (weights[1] * finite(lse)).sum()
    loss = loss + 0 * sum(leaf.sum() for leaf in leaves)  # without documents nothing else reaches
    return list(torch.autograd.grad(loss, leaves))


def check_gradients(case: Case, given: Inputs, backend: str) -> None:
    """Documented: weights are made again from scores, in powers of two, and not from the stored."""
    rng = generator(f"weights of {case}")
    shape = given.q_THD.shape
    weights = [torch.randn(s, generator=rng).to(given.q_THD.dtype) for s in (shape, shape[:2])]
    exact = gradients(cast(given, torch.float64), weights, lambda x: dense(case, x))
    plain = [gradients(given, weights, lambda x: run(x, "reference"))]
    for by in ROLLS:
        turned = [weights[0].roll(by, -1), weights[1]]
        found = gradients(rolled(given, by), turned, lambda x: dense(case, x))
        plain.append([x.roll(-by, -1) for x in found])
    with poisoned_allocations():
        ours = gradients(given, weights, lambda x: run(x, backend))
    for name, found, best, *baselines in zip(FIELDS, ours, exact, *plain, strict=False):
        what = f"{case}: gradient of {name}"
        assert_as_plain(found, best, baselines, what, "documented gradient")


@dtypes
@every_case
@every_way
def test_values(backend: str, isa: str, case: Case, dtype: torch.dtype) -> None:
    """Output and log-sum-exp obey the accuracy rule, in memory that was poisoned."""
    check_values(case, make(case, generator(case.name), dtype), backend)


@dtypes
@every_case
@every_way
def test_gradients(backend: str, isa: str, case: Case, dtype: torch.dtype) -> None:
    """Gradients of every floating argument, through both results, obey the rule."""
    check_gradients(case, make(case, generator(case.name), dtype), backend)


@every_case
def test_definition_in_fp64(case: Case) -> None:
    """The definition agrees with the dense mask to the last few bits, for every kind of mask."""
    given = make(case, generator(case.name), torch.float64)
    for found, expected in zip(run(given), dense(case, given), strict=True):
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("shift", [-1, 1])
@pytest.mark.parametrize("case", [CASES[3], CASES[4], CASES[6], SHARED], ids=str)
def test_dense_mask_notices_one_key_more_or_less(case: Case, shift: int) -> None:
    """The comparisons above can fail: kv_end off by one is far outside their tolerance."""
    given = make(case, generator(case.name), torch.float64)
    last = given.who.kv_end[given.who.cu_q[1:] - 1]
    most = torch.repeat_interleave(last, given.who.cu_q.diff())
    moved = (given.who.kv_end + shift).clamp(min=1).minimum(most)
    out, _ = run(dataclasses.replace(given, who=dataclasses.replace(given.who, kv_end=moved)))
    assert (out - dense(case, given)[0]).abs().max() > 1e-3


@every_case
def test_gradcheck(case: Case) -> None:
    """The definition and the registered gradients, by finite differences in fp64."""
    given = make(case, generator(case.name), torch.float64)
    leaves = [tensor.requires_grad_() for tensor in tensors(given)]

    def definition(*new: Tensor) -> tuple[Tensor, Tensor]:
        x = replaced(given, list(new))
        q, k, v, pk, pv = (getattr(x, name) for name in FIELDS)
        out, lse = shared_attention_reference(q, k, v, x.who, pk, pv, rows=x.rows_T)
        return out, finite(lse)

    def op(*new: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = run(replaced(given, list(new)))
        return out, finite(lse)

    assert torch.autograd.gradcheck(definition, leaves, fast_mode=True)
    assert torch.autograd.gradcheck(op, leaves, fast_mode=True)


@every_way
def test_query_heads_share_key_value_heads_in_runs(backend: str, isa: str) -> None:
    """With H = 6 and G = 2, heads 0 to 2 read key-value head 0 and heads 3 to 5 read head 1."""
    g = generator("gqa")
    q_THD, k_SGD = torch.randn(4, 6, 8, generator=g), torch.randn(4, 2, 8, generator=g)
    v_SGD = torch.tensor([1.0, 2.0])[None, :, None].expand(4, 2, 8)
    cu = torch.tensor([0, 4])
    who = KvEnd(cu, cu, torch.arange(1, 5))
    out_THD, _ = ops.shared_attention(q_THD, k_SGD, v_SGD, who, backend=backend)
    expected = torch.tensor([1.0, 1, 1, 2, 2, 2])[None, :, None].expand(4, 6, 8)
    torch.testing.assert_close(out_THD, expected)


@every_way
@pytest.mark.parametrize("scale", [0.0, 0.01, 3.0])
def test_scale_and_large_scores(backend: str, isa: str, scale: float) -> None:
    """The scale multiplies the scores, and scores of hundreds neither overflow nor lose the sum."""
    given = make(CASES[1], generator("scale"))
    given = dataclasses.replace(given, q_THD=given.q_THD * 40)
    out, lse = run(given, backend, scale=scale)
    wide = cast(given, torch.float64)
    exact_out, exact_lse = run(wide, "reference", scale=scale)
    torch.testing.assert_close(out.double(), exact_out, rtol=0, atol=1e-4)
    torch.testing.assert_close(lse.double(), exact_lse, rtol=1e-6, atol=1e-6)


@dtypes
@every_way
def test_a_query_that_sees_nothing(backend: str, isa: str, dtype: torch.dtype) -> None:
    """0 and -inf, a gradient of exactly 0 for the query, and nothing of it in k's and v's."""
    cu = torch.tensor([0, 3, 5])
    q, k, v = (torch.randn(5, n, 8, generator=generator("none")).to(dtype) for n in (4, 2, 2))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    who = KvEnd(cu, cu, torch.tensor([0, 2, 3, 0, 0]))
    out, lse = ops.shared_attention(q, k, v, who, backend=backend)
    (out.sum() + torch.where(lse == -torch.inf, 0, lse).sum()).backward()
    blind = torch.tensor([0, 3, 4])
    assert bool((out[blind] == 0).all())
    assert bool((lse[blind] == -torch.inf).all())
    grads = [leaf.grad for leaf in leaves]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)
    assert bool((grads[0][blind] == 0).all())  # type: ignore[index]
    assert all(bool((grad[3:] == 0).all()) for grad in grads[1:])  # type: ignore[index]


@every_way
def test_nothing_to_do(backend: str, isa: str) -> None:
    """No keys, no queries, no documents: legal calls, with gradients."""
    zero = torch.zeros(3, dtype=torch.int64)
    for cu_q, cu_k in (
        (torch.tensor([0, 2, 3]), zero),
        (zero, torch.tensor([0, 2, 3])),
        (zero[:1],) * 2,
    ):
        q, k = torch.randn(int(cu_q[-1]), 4, 8), torch.randn(int(cu_k[-1]), 2, 8)
        who = KvEnd(cu_q, cu_k, zero[: len(q)])
        leaves = [q.requires_grad_(), k.requires_grad_()]
        out, lse = ops.shared_attention(q, k, k, who, backend=backend)
        assert out.shape == q.shape
        assert bool((out == 0).all())
        assert bool((lse == -torch.inf).all())
        for grad in torch.autograd.grad(out.sum(), leaves):
            assert bool((grad == 0).all())


@dtypes
@every_way
def test_another_documents_nan_stays_there(backend: str, isa: str, dtype: torch.dtype) -> None:
    """Keys and values of NaN in one document leave the bits of the others."""
    case = CASES[3]
    given = make(case, generator("nan"), dtype)
    clean, _ = run(given, backend)
    for poisoned in (slice(0, 3), slice(3, 12), slice(12, 13)):
        spoilt = cast(given, dtype)
        spoilt.k_SGD[poisoned] = math.nan
        spoilt.v_SGD[poisoned] = math.nan
        others = torch.ones(13, dtype=torch.bool)
        others[poisoned] = False
        assert torch.equal(run(spoilt, backend)[0][others], clean[others])


@dtypes
@every_way
def test_nan_that_nobody_sees(backend: str, isa: str, dtype: torch.dtype) -> None:
    """Rows beyond the largest kv_end, as in a cache half filled, change nothing, nor gradients."""
    given = make(Case("", 4, 2, 8, ((1,) * 40,)), generator("unseen"), dtype)
    given = dataclasses.replace(
        given, who=dataclasses.replace(given.who, kv_end=given.who.kv_end.clamp(max=5))
    )
    spoilt = cast(given, dtype)
    spoilt.k_SGD[5:] = math.nan
    spoilt.v_SGD[5:] = math.nan
    weights = [torch.ones(40, 4, 8), torch.ones(40, 4)]
    assert torch.equal(run(spoilt, backend)[0], run(given, backend)[0])
    leaves = [[x.requires_grad_() for x in tensors(one)] for one in (given, spoilt)]
    found = []
    for one, own in zip((given, spoilt), leaves, strict=True):
        out, lse = run(replaced(one, own), backend)
        found.append(torch.autograd.grad((weights[0] * out).sum() + (weights[1] * lse).sum(), own))
    for clean, other in zip(*found, strict=True):
        assert torch.equal(clean, other)


@dtypes
@every_way
def test_shared_prefix_equals_copies_of_it(backend: str, isa: str, dtype: torch.dtype) -> None:
    """prefix_index that repeats one prefix gives what as many copies of it give."""
    given = make(SHARED, generator("copies"), dtype)
    assert given.prefix_k_PGD is not None
    assert given.prefix_v_PGD is not None
    begin = [sum(SHARED.prefixes[:i]) for i in SHARED.index]
    rows = torch.cat(
        [torch.arange(b, b + SHARED.prefixes[i]) for b, i in zip(begin, SHARED.index, strict=True)]
    )
    lengths = torch.tensor([SHARED.prefixes[i] for i in SHARED.index])
    who = dataclasses.replace(
        given.who,
        cu_prefix=torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        prefix_index=torch.arange(len(lengths)),
    )
    copies = dataclasses.replace(
        given,
        who=who,
        prefix_k_PGD=given.prefix_k_PGD[rows],
        prefix_v_PGD=given.prefix_v_PGD[rows],
    )
    assert torch.equal(run(given, backend)[0], run(copies, backend)[0])


@every_way
def test_out_face(backend: str, isa: str) -> None:
    """The bound pass follows what its memory holds and writes nothing between the elements."""
    given = make(CASES[4], generator("out"))
    q, k, v, _, _ = (getattr(given, name) for name in FIELDS)
    full = torch.full((*q.shape[:2], q.shape[2] + 3), 7.0)
    out, lse = poison(full[..., : q.shape[2]]), poison(torch.empty(q.shape[:2]))
    attend = ops.shared_attention_out(
        q, k, v, given.who, out=out, lse=lse, rows=given.rows_T, backend=backend
    )
    q.mul_(-0.5)
    attend()
    for one, other in zip((out, lse), run(given, backend), strict=True):
        assert torch.equal(one, other)
    assert bool((full[..., q.shape[2] :] == 7.0).all())


@every_way
def test_autocast(backend: str, isa: str) -> None:
    """Under autocast mixed inputs are cast like torch's attention casts them."""
    given = make(CASES[5], generator("autocast"))
    low = cast(given, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = run(dataclasses.replace(given, v_SGD=low.v_SGD), backend)
    assert torch.equal(found, run(low, backend)[0])


def test_fuzz(fuzz: range) -> None:
    """Random documents: values and gradients of the default backend obey the rule."""
    for seed in fuzz:
        case = random_case(seed)
        dtype = (torch.float32, torch.bfloat16)[seed % 2]
        given = make(case, generator(case.name), dtype)
        try:
            check_values(case, given, "auto")
            check_gradients(case, given, "auto")
        except AssertionError as error:
            raise AssertionError(f"random_case({seed}), {dtype}: {error}") from error
