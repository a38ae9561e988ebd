"""shared_attention as a part of torch: registration, compilation, the same bits every time."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from vlakern import ops
from vlakern.ops.shared_attention.cases import BENCH, CASES, Case, Inputs, make
from vlakern.testing import generator

SHARED = next(case for case in CASES if case.name == "one prefix shared by several rows")
LARGE = Case("for two threads", 8, 4, 64, ((70,), (1,) * 50, (9, 60)), (150, 40), (1, 0, 1))
FIELDS = ("q_THD", "k_SGD", "v_SGD", "prefix_k_PGD", "prefix_v_PGD")
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts torch's number of threads back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tensors(given: Inputs) -> list[Tensor]:
    found = [getattr(given, name) for name in FIELDS]
    return [tensor for tensor in found if tensor is not None]


def attend(leaves: Sequence[Tensor], given: Inputs) -> tuple[Tensor, Tensor]:
    """The op on q, k, v and, if there are five leaves, a cached prefix."""
    q, k, v, *prefix = leaves
    prefix_k, prefix_v = prefix or (None, None)
    return ops.shared_attention(q, k, v, given.who, prefix_k, prefix_v, rows=given.rows_T)


def everything(given: Inputs) -> list[Tensor]:
    """Both results and all gradients of the default backend."""
    leaves = [x.detach().requires_grad_() for x in tensors(given)]
    out, lse = attend(leaves, given)
    loss = out.float().square().sum() + lse.sum()
    return [out, lse, *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("case", [CASES[4], SHARED], ids=str)
def test_opcheck(case: Case) -> None:
    """Schema, fake and autograd registrations agree with the op."""
    given = make(case, generator(case.name))
    leaves = [x.requires_grad_() for x in tensors(given)]
    pk, pv = leaves[3:] or (None, None)
    who = given.who
    arguments = (*leaves[:3], who.cu_q, who.cu_k, who.kv_end, who.cu_prefix, who.prefix_index)
    options = (who.max_q, who.max_keys, 0.3, True, "auto")
    torch.library.opcheck(
        torch.ops.vlakern.shared_attention.default,
        (*arguments, pk, pv, given.rows_T, *options),
    )


def test_compiles_without_a_graph_break() -> None:
    """torch.compile(fullgraph=True) traces the op, forward and backward."""
    given = make(SHARED, generator("compile"))
    leaves = [x.requires_grad_() for x in tensors(given)]

    def loss(*new: Tensor) -> Tensor:
        out, _ = attend(new, given)
        return torch.tanh(out).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*leaves), leaves)
    for one, other in zip(found, torch.autograd.grad(loss(*leaves), leaves), strict=True):
        torch.testing.assert_close(one, other)


@dtypes
@pytest.mark.usefixtures("threads")
def test_threads_do_not_change_bits(dtype: torch.dtype) -> None:
    """Results and gradients have the same bits on one, two and three threads."""
    given = make(LARGE, generator("threads"), dtype)
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(everything(given))
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@dtypes
@pytest.mark.usefixtures("threads")
def test_250_repeats_have_the_same_bits(dtype: torch.dtype) -> None:
    """Forward on one and two threads in turn, backward every tenth time."""
    given = make(LARGE, generator("repeats"), dtype)
    first = everything(given)
    for repeat in range(250):
        torch.set_num_threads(1 + repeat % 2)
        found = everything(given) if repeat % 10 == 0 else list(attend(tensors(given), given))
        assert all(torch.equal(one, two) for one, two in zip(first, found, strict=False))


@dtypes
def test_a_row_of_a_batch_equals_the_same_row_alone(dtype: torch.dtype) -> None:
    """The order of summation does not depend on what else is in the batch."""
    four = make(BENCH[1], generator("batch"), dtype)
    one = make(BENCH[0], generator("batch"), dtype)
    prefix = (four.prefix_k_PGD, four.prefix_v_PGD)
    alone = slice(16, 32)
    q, k, v = (x[alone] for x in (four.q_THD, four.k_SGD, four.v_SGD))
    batched, _ = ops.shared_attention(four.q_THD, four.k_SGD, four.v_SGD, four.who, *prefix)
    single, _ = ops.shared_attention(q, k, v, one.who, *prefix)
    assert torch.equal(batched[alone], single)
