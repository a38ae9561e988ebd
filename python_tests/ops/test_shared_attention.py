"""Shared attention in ``kv_end`` form is plain softmax attention under a dense boolean mask."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from vlakern.errors import InputError
from vlakern.ops.shared_attention import KvEnd, shared_attention
from vlakern.ops.shared_attention.cases import CASES, Case, Inputs, make
from vlakern.testing import assert_accurate, generator

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
SHARED = next(case for case in CASES if case.name == "one prefix shared by several rows")


def run(given: Inputs) -> Tensor:
    return shared_attention(
        given.q_THD, given.k_SGD, given.v_SGD, given.who, given.prefix_k_PGD, given.prefix_v_PGD
    )


def cast(given: Inputs, dtype: torch.dtype) -> Inputs:
    def to(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.detach().to(dtype, copy=True)

    fields = ("q_THD", "k_SGD", "v_SGD", "prefix_k_PGD", "prefix_v_PGD")
    return dataclasses.replace(given, **{name: to(getattr(given, name)) for name in fields})


def block_mask(case: Case, document: int) -> Tensor:
    """bool [own, prefix + own] from block(j) <= block(i), with no word of ``kv_end``."""
    block = torch.tensor([b for b, size in enumerate(case.blocks[document]) for _ in range(size)])
    prefix = case.prefixes[case.index[document]] if case.index else 0
    key_block = torch.cat([torch.full((prefix,), -1), block])
    visible = key_block[None, :] <= block[:, None]
    visible[: case.blind] = False
    return visible


def dense(case: Case, given: Inputs) -> Tensor:
    """Document by document and head by head, in the inputs' own dtype."""
    rows, begin = [], 0
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
        heads = []
        for h in range(case.heads):
            g = h // (case.heads // case.groups)
            score = given.q_THD[own, h] @ k_KGD[:, g].T / math.sqrt(case.head_dim)
            weight = torch.where(visible, score.exp(), 0)
            total = weight.sum(-1, keepdim=True)
            heads.append(torch.where(total > 0, weight / total.clamp(min=1e-30), 0) @ v_KGD[:, g])
        rows.append(torch.stack(heads, dim=1))
    return torch.cat(rows)


@EVERY
def test_equals_a_dense_boolean_mask(case: Case) -> None:
    """In fp64 both agree to the last few bits, for every kind of mask."""
    given = make(case, generator(case.name), torch.float64)
    found = run(given)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, dense(case, given), rtol=0, atol=1e-13)


@pytest.mark.parametrize("shift", [-1, 1])
@pytest.mark.parametrize("case", [CASES[3], CASES[4], CASES[6], SHARED], ids=lambda c: c.name)
def test_dense_mask_notices_one_key_more_or_less(case: Case, shift: int) -> None:
    """The comparison above can fail: kv_end off by one is far outside its tolerance."""
    given = make(case, generator(case.name), torch.float64)
    last = given.who.kv_end[given.who.cu_q[1:] - 1]
    most = torch.repeat_interleave(last, given.who.cu_q.diff())
    moved = (given.who.kv_end + shift).clamp(min=1).minimum(most)
    found = run(dataclasses.replace(given, who=dataclasses.replace(given.who, kv_end=moved)))
    assert (found - dense(case, given)).abs().max() > 1e-3


@EVERY
@DTYPES
def test_low_precision_is_as_good_as_plain_pytorch(case: Case, dtype: torch.dtype) -> None:
    """At most twice plain PyTorch's error against fp64 from the same rounded inputs."""
    given = make(case, generator(case.name), dtype)
    exact = dense(case, cast(given, torch.float64))
    assert_accurate(run(given), exact, dense(case, given), case.name)


def test_query_heads_share_key_value_heads_in_runs() -> None:
    """With H = 6 and G = 2, heads 0 to 2 read key-value head 0 and heads 3 to 5 read head 1."""
    g = generator("gqa")
    q_THD, k_SGD = torch.randn(4, 6, 8, generator=g), torch.randn(4, 2, 8, generator=g)
    v_SGD = torch.tensor([1.0, 2.0])[None, :, None].expand(4, 2, 8)
    cu = torch.tensor([0, 4])
    out_THD = shared_attention(q_THD, k_SGD, v_SGD, KvEnd(cu, cu, torch.arange(1, 5)))
    expected = torch.tensor([1.0, 1, 1, 2, 2, 2])[None, :, None].expand(4, 6, 8)
    torch.testing.assert_close(out_THD, expected)


@EVERY
def test_gradients_reach_all_inputs_exactly(case: Case) -> None:
    """Finite differences in fp64, for queries, own keys and values and the cached prefix."""
    given = make(case, generator(case.name), torch.float64)
    tensors = [given.q_THD, given.k_SGD, given.v_SGD]
    if given.prefix_k_PGD is not None and given.prefix_v_PGD is not None:
        tensors += [given.prefix_k_PGD, given.prefix_v_PGD]
    leaves = [tensor.requires_grad_() for tensor in tensors]

    def call(
        q: Tensor, k: Tensor, v: Tensor, pk: Tensor | None = None, pv: Tensor | None = None
    ) -> Tensor:
        return shared_attention(q, k, v, given.who, pk, pv)

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True)
    run(given).square().sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert case.name == "one token" or bool(leaf.grad.abs().sum() > 0)


def test_a_query_that_sees_nothing_gives_zeros_and_finite_gradients() -> None:
    """Its output row and its query's gradient are exactly zero, and nothing is NaN."""
    cu = torch.tensor([0, 3, 5])
    q, k, v = (torch.randn(5, n, 4, generator=generator("none")) for n in (4, 2, 2))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = shared_attention(q, k, v, KvEnd(cu, cu, torch.tensor([0, 2, 3, 0, 0])))
    out.sum().backward()
    blind = torch.tensor([0, 3, 4])
    assert bool((out[blind] == 0).all())
    assert q.grad is not None
    assert bool((q.grad[blind] == 0).all())
    assert all(leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in leaves)


def test_documents_without_keys_give_zeros() -> None:
    """No own key and no prefix at all is a legal call."""
    cu, none = torch.tensor([0, 2, 3]), torch.zeros(3, dtype=torch.int64)
    q, k = torch.randn(3, 4, 8), torch.randn(0, 2, 8)
    out = shared_attention(q, k, k, KvEnd(cu, none, none))
    assert out.shape == q.shape
    assert bool((out == 0).all())


def test_another_documents_nan_stays_there() -> None:
    """Keys and values of NaN in one document leave the bits of the others."""
    case = CASES[3]
    given = make(case, generator("nan"))
    clean = run(given)
    for poisoned in (slice(0, 3), slice(3, 12), slice(12, 13)):
        spoilt = cast(given, torch.float32)
        spoilt.k_SGD[poisoned] = math.nan
        spoilt.v_SGD[poisoned] = math.nan
        others = torch.ones(13, dtype=torch.bool)
        others[poisoned] = False
        assert torch.equal(run(spoilt)[others], clean[others])


def test_shared_prefix_equals_copies_of_it() -> None:
    """prefix_index that repeats one prefix gives what as many copies of it give."""
    given = make(SHARED, generator("copies"))
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
    assert torch.equal(run(given), run(copies))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kv_end": torch.tensor([1, 2, 4, 1, 2])}, "leaves the keys of its document"),
        ({"kv_end": torch.tensor([1, 2, -1, 1, 2])}, "leaves the keys of its document"),
        ({"kv_end": torch.tensor([1, 2])}, "2 entries of kv_end for 5 queries"),
        ({"cu_k": torch.tensor([0, 3, 4])}, "leaves the keys of its document"),
        ({"cu_k": torch.tensor([0, 3, 6])}, "found 5 cached and own keys"),
        ({"prefix_index": torch.tensor([0, 0])}, "found 1 of the four"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(change: dict[str, Tensor], sentence: str) -> None:
    """Each wrong range is one sentence, never a read of a stranger's row."""
    cu = torch.tensor([0, 3, 5])
    who = dataclasses.replace(KvEnd(cu, cu, torch.tensor([1, 2, 3, 1, 2])), **change)
    q, k = torch.randn(5, 4, 8), torch.randn(5, 2, 8)
    with pytest.raises(InputError, match=sentence):
        shared_attention(q, k, k, who)


def test_shapes_that_do_not_fit_are_refused() -> None:
    """Heads that do not divide, another width, or a prefix without its ranges."""
    cu = torch.tensor([0, 3])
    who = KvEnd(cu, cu, torch.tensor([1, 2, 3]))
    q, k = torch.randn(3, 4, 8), torch.randn(3, 2, 8)
    for wrong in (torch.randn(3, 3, 8), torch.randn(3, 2, 6)):
        with pytest.raises(InputError, match="do not fit"):
            shared_attention(q, wrong, wrong, who)
    with pytest.raises(InputError, match="found 2 of the four"):
        shared_attention(q, k, k, who, k, k)
