"""shared_attention in Triton: interpreted on reduced cases, compiled ahead of time, on a GPU."""

import dataclasses
import importlib
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import env, ops
from vlakern.errors import Unsupported
from vlakern.ops._dispatch import Key, refusals
from vlakern.ops.shared_attention import KvEnd
from vlakern.ops.shared_attention.cases import CASES, Case, Inputs, make, random_case
from vlakern.ops.shared_attention.reference import documents, keys_of
from vlakern.testing import assert_accurate, generator, poisoned_allocations
from vlakern.testing.compare import largest_error

INTERPRETED = env.triton_interpret()
interpreted = pytest.mark.skipif(not INTERPRETED, reason="see test_in_interpreter")
LAUNCH = "vlakern.ops.shared_attention.triton_launch"
FIELDS = ("q_THD", "k_SGD", "v_SGD", "prefix_k_PGD", "prefix_v_PGD")
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
REDUCED = {
    "full prefix, state block, causal actions": "bf16",
    "full prefix, state block, full actions": "fp16",
    "one prefix shared by several rows": "bf16",
    "an empty prefix": "fp16",
    "queries that see nothing": "bf16",
    "a prefix that nobody continues": "fp32",
    "longer than a block on a prefix, D 64": "bf16",
    "D 72": "bf16",
    "D 256": "fp16",
}
SPLIT = {  # more keys than a chunk; one document sees nothing in most chunks, queries in none
    Case("chunks that nobody sees", 4, 2, 8, ((40,), (3,)), (90, 0), (0, 1), blind=2): "fp32",
    CASES[12]: "bf16",
}
D72 = Case("D 72", 2, 1, 72, ((9, 1, 4),), shuffled=True, strided=True)
NAMED = {case.name: case for case in (*CASES, D72)}
reduced = pytest.mark.parametrize(("name", "dtype"), REDUCED.items())


def tensors(given: Inputs) -> list[Tensor]:
    return [x for name in FIELDS if (x := getattr(given, name)) is not None]


def changed(given: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The same with another q, k, v and prefix."""
    new = map(change, tensors(given))
    return dataclasses.replace(given, **dict(zip(FIELDS, new, strict=False)))


def on_gpu(given: Inputs) -> Inputs:
    moved = changed(given, lambda x: x.cuda())
    rows = None if given.rows_T is None else given.rows_T.cuda()
    return dataclasses.replace(moved, who=given.who.to("cuda"), rows_T=rows)


def run(given: Inputs, backend: str = "triton") -> tuple[Tensor, Tensor]:
    q, k, v, pk, pv = (getattr(given, name) for name in FIELDS)
    return ops.shared_attention(q, k, v, given.who, pk, pv, rows=given.rows_T, backend=backend)


def plain(given: Inputs) -> tuple[Tensor, Tensor]:
    """Plain PyTorch in the inputs' own precision, one document after the other."""
    q_THD, dtype = given.q_THD, given.q_THD.dtype
    group = q_THD.shape[1] // given.k_SGD.shape[1]
    out_THD, lse_TH = torch.zeros_like(q_THD), q_THD.new_zeros(q_THD.shape[:2]).float()
    for document in documents(given.who, given.rows_T):
        k_KHD, v_KHD = (
            keys_of(document, own, cached).to(dtype).repeat_interleave(group, dim=1)
            for own, cached in (
                (given.k_SGD, given.prefix_k_PGD),
                (given.v_SGD, given.prefix_v_PGD),
            )
        )
        score_HQK = torch.einsum("qhd,khd->hqk", q_THD[document.queries], k_KHD)
        score_HQK = score_HQK / math.sqrt(q_THD.shape[2])
        score_HQK = score_HQK.masked_fill(~document.visible_QK, torch.finfo(dtype).min)
        weight_HQK = score_HQK.softmax(-1).masked_fill(~document.visible_QK, 0)
        out_QHD = torch.einsum("hqk,khd->qhd", weight_HQK, v_KHD)
        blind_Q = ~document.visible_QK.any(-1)
        lse_QH = score_HQK.float().logsumexp(-1).masked_fill(blind_Q, -torch.inf).T
        out_THD = out_THD.index_copy(0, document.queries, out_QHD)
        lse_TH = lse_TH.index_copy(0, document.queries, lse_QH)
    return out_THD, lse_TH


def finite(lse: Tensor) -> Tensor:
    return torch.where(lse == -torch.inf, 0, lse)


def assert_as_plain(found: Tensor, exact: Tensor, plain: list[Tensor], what: str) -> None:
    """The rule against the worse of two plain computations: a few numbers may be exact by luck.

    Gradients in fp32 are documented to have 3x: their weights come from a rounded log-sum-exp.
    """
    loose = found.dtype == torch.float32 and "gradient" in what
    worse = max(plain, key=lambda one: largest_error(one, exact))
    assert_accurate(found, exact, worse, what, "documented gradient" if loose else "value")


def check_values(given: Inputs, what: str) -> None:
    exact = run(changed(given, lambda x: x.double()), "reference")
    baselines = [plain(given), run(given, "reference")]
    with poisoned_allocations():
        found = run(given)
    assert torch.equal(found[1] == -torch.inf, exact[1] == -torch.inf)
    outs, logs = ([one[i] for one in (found, exact, *baselines)] for i in (0, 1))
    assert_as_plain(outs[0], outs[1], outs[2:], f"{what}: out")
    logs = [finite(log) for log in logs]
    assert_as_plain(logs[0], logs[1], logs[2:], f"{what}: lse")


def gradients(given: Inputs, call: Callable[[Inputs], tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Of a weighted sum of both results."""
    rng, shape = generator("weights"), given.q_THD.shape
    weights = [torch.randn(s, generator=rng).bfloat16() for s in (shape, shape[:2])]
    leaves = changed(given, lambda x: x.detach().clone().requires_grad_())
    out, lse = call(leaves)
    terms = [(w.to(x) * x).sum() for w, x in zip(weights, (out, finite(lse)), strict=True)]
    return list(torch.autograd.grad(terms[0] + terms[1], tensors(leaves)))


def check_gradients(given: Inputs, what: str) -> None:
    exact = gradients(changed(given, lambda x: x.double()), lambda x: run(x, "reference"))
    baselines = [gradients(given, call) for call in (plain, lambda x: run(x, "reference"))]
    with poisoned_allocations():
        ours = gradients(given, run)
    for name, found, best, *worse in zip(FIELDS, ours, exact, *baselines, strict=False):
        assert_as_plain(found, best, worse, f"{what}: gradient of {name}")


def check(case: Case, dtype: str, move: Callable[[Inputs], Inputs] = lambda x: x) -> None:
    given = move(make(case, generator(case.name), TYPES[dtype]))
    check_values(given, f"{case}, {dtype}")
    check_gradients(given, f"{case}, {dtype}")


@pytest.fixture
def many_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if on a large GPU, where the key range is split."""
    if INTERPRETED:
        launch = importlib.import_module(LAUNCH)
        monkeypatch.setattr(launch, "processors", lambda device: 132)


@interpreted
@reduced
def test_values_and_gradients(name: str, dtype: str) -> None:
    """Both results and every gradient obey the rule, in memory that was poisoned."""
    check(NAMED[name], dtype)


@interpreted
@pytest.mark.parametrize(("case", "dtype"), SPLIT.items(), ids=map(str, SPLIT))
def test_split_values(many_processors: None, case: Case, dtype: str) -> None:
    """Parts over chunks of the keys combine to the same values."""
    check_values(make(case, generator(case.name), TYPES[dtype]), case.name)


def weight(case: Case) -> int:
    return case.pairs * case.heads


@interpreted
def test_fuzz(fuzz: range, many_processors: None) -> None:
    """Random small documents obey the rule."""
    small = [seed for seed in fuzz if 100 < weight(random_case(seed)) < 6000]
    assert len(small) > 20
    for seed in small[:: 1 if len(fuzz) > 200 else 12]:
        dtype = ("bf16", "fp16")[seed % 2]
        try:
            check(random_case(seed), dtype)
        except AssertionError as error:
            raise AssertionError(f"check(random_case({seed}), {dtype!r}): {error}") from error


@interpreted
def test_nothing_to_do() -> None:
    """No keys, no queries, no documents: legal calls, with gradients of 0."""
    zero = torch.zeros(3, dtype=torch.int64)
    two = torch.tensor([0, 2, 3])
    for cu_q, cu_k in ((two, zero), (zero, two), (zero[:1], zero[:1])):
        q, k = torch.randn(int(cu_q[-1]), 4, 8), torch.randn(int(cu_k[-1]), 2, 8)
        leaves = [q.requires_grad_(), k.requires_grad_()]
        with poisoned_allocations():
            out, lse = ops.shared_attention(
                q, k, k, KvEnd(cu_q, cu_k, zero[: len(q)]), backend="triton"
            )
            grads = torch.autograd.grad((2 * out).sum(), leaves)
        assert bool((out == 0).all())
        assert bool((lse == -torch.inf).all())
        assert all(bool((grad == 0).all()) for grad in grads)


@interpreted
def test_another_documents_nan_stays_there() -> None:
    """Keys and values of NaN in one document leave the bits and gradients of the others."""
    case = NAMED["ragged causal documents"]
    given = make(case, generator("nan"))
    spoilt = changed(given, torch.clone)
    spoilt.k_SGD[3:12] = math.nan
    spoilt.v_SGD[3:12] = math.nan
    others = torch.tensor([0, 1, 2, 12])
    for one, other in zip(run(given), run(spoilt), strict=True):
        assert torch.equal(one[others], other[others])
    for one, other in zip(gradients(given, run), gradients(spoilt, run), strict=True):
        assert torch.equal(one[others], other[others])


@interpreted
def test_bound_pass_follows_its_memory(many_processors: None) -> None:
    """A bound split pass is made again on what its memory holds then, and writes nothing beside."""
    given = make(next(iter(SPLIT)), generator("out"))
    q, k, v, pk, pv = (getattr(given, name) for name in FIELDS)
    full, lse = torch.full((*q.shape[:2], 11), 7.0), torch.empty(q.shape[:2])
    attend = ops.shared_attention_out(
        q, k, v, given.who, pk, pv, out=full[..., :8], lse=lse, backend="triton"
    )
    q.mul_(-0.5)
    attend()
    for found, expected in zip((full[..., :8], lse), run(given), strict=True):
        assert torch.equal(found, expected)
    assert bool((full[..., 8:] == 7.0).all())


@pytest.mark.skipif(INTERPRETED, reason="is the one that interprets")
def test_in_interpreter(run_interpreted: Callable[[str], int]) -> None:
    """Everything above that needs Triton's interpreter, in a process where it interprets."""
    assert run_interpreted(__file__) >= len(REDUCED) + len(SPLIT) + 4


def test_refuses() -> None:
    """What is not covered is refused with its reason: fp64, wide heads, the CPU, old GPUs."""

    def reason(dtype: str = "bfloat16", width: int = 128, **other: Any) -> str | None:
        facts = {"device": "cuda", "arch": 90} | other
        key = Key(dtypes=(dtype,), dims=(("H", 8), ("G", 1), ("D", width)), **facts)
        return refusals("shared_attention", key)["triton"]

    assert all(reason(dtype) is None for dtype in ("float32", "bfloat16", "float16"))
    assert all(reason(width=width) is None for width in (1, 64, 72, 256))
    assert "not float64" in str(reason("float64"))
    assert "head dim 257 is above 256" in str(reason(width=257))
    assert "sm_80 or newer" in str(reason(arch=75))
    if not INTERPRETED:
        assert "needs an NVIDIA GPU" in str(reason(device="cpu", arch=0))
        with pytest.raises(Unsupported, match="triton of shared_attention refuses"):
            run(make(CASES[1], generator("refused")))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gpu_values(case: Case, dtype: str) -> None:
    """On the GPU, too, values and gradients obey the rule."""
    check(case, dtype, on_gpu)


@pytest.mark.gpu
@reduced
def test_gpu_reduced(name: str, dtype: str) -> None:
    """The list for compute-sanitizer: every kernel, no access out of bounds."""
    given = on_gpu(make(NAMED[name], generator(name), TYPES[dtype]))
    assert all(bool(grad.isfinite().all()) for grad in gradients(given, run))


@pytest.mark.gpu
def test_gpu_gives_the_same_bits_every_time() -> None:
    """250 forward and backward passes of a split case with a shared prefix."""
    case = dataclasses.replace(NAMED["one prefix shared by several rows"], prefixes=(300, 200))
    given = on_gpu(make(case, generator("repeat"), torch.bfloat16))
    first = [*run(given), *gradients(given, run)]
    for _ in range(250):
        for one, other in zip(first, [*run(given), *gradients(given, run)], strict=True):
            assert torch.equal(one, other)
