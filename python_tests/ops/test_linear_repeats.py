"""Bits of the ops on packed weights: 250 repeats, on one and on two threads in turn, are one."""

from collections.abc import Callable, Iterator
from itertools import cycle

import pytest
import torch
from torch import Tensor

from vlakern import ops
from vlakern.ops.action_embed import cases as embed
from vlakern.ops.action_unembed import cases as unembed
from vlakern.ops.gated_mlp import cases as mlp
from vlakern.ops.linear import cases as linear
from vlakern.testing import poisoned_allocations

Call = Callable[[], Tensor]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def linear_call(kind: str, rng: torch.Generator) -> Call:
    packed, inputs = linear.make_inputs(linear.Case(33, 320, 260, kind), rng)
    return lambda: ops.linear(weight=packed, **inputs, backend="cpu")


def gated_mlp_call(kind: str, rng: torch.Generator) -> Call:
    gate_up, down, inputs = mlp.make_inputs(mlp.Case(17, 128, 192, 128, kind), rng)
    return lambda: ops.gated_mlp(gate_up=gate_up, down=down, **inputs, backend="cpu")


def embed_call(kind: str, rng: torch.Generator) -> Call:
    case = embed.Case(2, 17, 13, 192, kind, "R")
    given = embed.op_arguments(case, embed.make_inputs(case, rng))
    return lambda: ops.action_embed(**given, backend="cpu")


def unembed_call(kind: str, rng: torch.Generator) -> Call:
    case = unembed.Case(33, 192, 160, 13, kind, "rms")
    given = unembed.op_arguments(case, unembed.make_inputs(case, rng))
    return lambda: ops.action_unembed(**given, backend="cpu")


CALLS: dict[str, tuple[Callable[[str, torch.Generator], Call], tuple[str, ...]]] = {
    "linear": (linear_call, ("bf16", "fp32", "int8")),
    "gated_mlp": (gated_mlp_call, ("bf16", "fp32", "int8")),
    "action_embed": (embed_call, ("bf16", "fp32")),
    "action_unembed": (unembed_call, ("bf16", "fp32")),
}


@pytest.mark.parametrize(("op", "kind"), [(o, k) for o, (_, kinds) in CALLS.items() for k in kinds])
def test_repeats(op: str, kind: str, rng: torch.Generator) -> None:
    """Fresh poisoned outputs and whichever worker takes what: never another bit."""
    call = CALLS[op][0](kind, rng)
    threads = cycle((1, 2))
    found = []
    with poisoned_allocations(), torch.no_grad():
        for _ in range(250):
            torch.set_num_threads(next(threads))
            found.append(call())
    first = found[0].contiguous().view(torch.uint8)
    assert bool(found[0].isfinite().all())
    assert all(torch.equal(one.contiguous().view(torch.uint8), first) for one in found)
