"""Speed of shared_attention, bound as an engine calls it; nothing is printed while it is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_shared_attention.py [--threads 1 2] [--only
NAME] [--compiled] [--backward] [--warm] [--json FILE]``; how it is timed is said in ``contest.py``.
Under pytest-benchmark: ``pytest benchmarks/ops/bench_shared_attention.py``.

``vlakern`` reads keys and values as ``[P, G, D]``, ``head-major`` as a view of ``[G, P, D]``,
``packed`` has the prefix packed before. The others have tensors that were laid out for them before
the clock starts, ``[documents, heads, tokens, D]``, which a model would have to gather:
scaled_dot_product_attention with key-value heads expanded (``sdpa``) and with enable_gqa, and
matmul, softmax, matmul with the queries that share a head as rows of one matrix (``by hand``); none
has a mask where every query sees everything.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import ops
from vlakern.errors import Unsupported
from vlakern.ops.shared_attention.cases import (
    BENCH,
    Case,
    Inputs,
    make,
    operations,
    traffic,
    written,
)
from vlakern.ops.shared_attention.reference import shared_attention_reference
from vlakern.testing import assert_accurate, generator

sys.path.insert(0, str(Path(__file__).parent))
from contest import Entry, How, main, under_pytest
from plain import Run, called
from shared_attention_baselines import plain, plain_attention

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def arguments(given: Inputs) -> tuple[Any, ...]:
    cached = (given.prefix_k_PGD, given.prefix_v_PGD)
    return (given.q_THD, given.k_SGD, given.v_SGD, given.who, *cached)


def copied(given: Inputs, head_major: bool = False) -> Inputs:
    """With keys and values of its own, as ``[G, P, D]`` in memory or not."""

    def copy(x: Tensor | None) -> Tensor | None:
        if x is None or not head_major:
            return None if x is None else x.clone()
        return x.transpose(0, 1).contiguous().transpose(0, 1)

    names = ("q_THD", "k_SGD", "v_SGD", "prefix_k_PGD", "prefix_v_PGD")
    own: dict[str, Any] = {name: copy(getattr(given, name)) for name in names}
    return replace(given, **own | {"q_THD": given.q_THD.clone()})


def bound(given: Inputs, backend: str, head_major: bool = False, packed: bool = False) -> Run:
    """The timed call, into memory of its own."""
    own = copied(given, head_major)
    out, lse = torch.empty_like(own.q_THD), torch.empty(own.q_THD.shape[:2])
    once = None
    if packed and own.prefix_k_PGD is not None and own.prefix_v_PGD is not None:
        once = ops.shared_attention_pack_prefix(own.prefix_k_PGD, own.prefix_v_PGD, own.who)
    return ops.shared_attention_out(*arguments(own), out=out, lse=lse, packed=once, backend=backend)


def check(case: Case, given: Inputs, backend: str) -> None:
    """Raises AssertionError if the op is wrong on the very inputs that are timed."""
    found, _ = ops.shared_attention(*arguments(given), backend=backend)
    wide: list[Any] = [x.double() if isinstance(x, torch.Tensor) else x for x in arguments(given)]
    exact, _ = shared_attention_reference(*wide)
    assert_accurate(found, exact, plain_attention(case, given), str(case))


def gradients(given: Inputs, backend: str) -> Run:
    """Of every input, from a graph that is kept."""
    sides = (given.k_SGD, given.v_SGD, given.prefix_k_PGD, given.prefix_v_PGD)

    def attend(q: Tensor, k: Tensor, v: Tensor, *cached: Tensor) -> Tensor:
        return ops.shared_attention(q, k, v, given.who, *cached, backend=backend)[0]

    leaves = [one.clone() for one in (given.q_THD, *sides) if one is not None]
    return called(attend, leaves, "backward")


def ways(case: Case, given: Inputs, how: How) -> dict[str, Callable[[], Run]]:
    """The layouts that the op takes."""
    if how.backward:
        return {"vlakern": partial(gradients, given, how.backend)}
    found: dict[str, Callable[[], Run]] = {
        "vlakern": partial(bound, given, how.backend),
        "head-major": partial(bound, given, how.backend, head_major=True),
    }
    if case.index and how.backend in ("auto", "cpu"):
        packed = partial(bound, given, how.backend, packed=True)
        try:
            packed()
        except Unsupported:
            return found
        found["packed"] = packed
    return found


def make_entry(case: Case, kind: str, how: How) -> Entry:
    """Everything that is timed for one case."""
    given = make(case, generator(str(case)), DTYPES[kind])
    out = written(given, how.backward)
    return Entry(
        "shared_attention",
        f"{case} {kind}",
        kind,
        partial(check, case, given, how.backend),
        ways(case, given, how),
        plain(case, given, how.backward),
        operations(case, how.backward),
        traffic(given, how.backward) - out,
        out,
    )


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_shared_attention(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the contest's beside it."""
    under_pytest(benchmark, partial(make_entry, case, "bf16"))


if __name__ == "__main__":
    entries = [
        (f"{case} {kind}", partial(make_entry, case, kind)) for kind in DTYPES for case in BENCH
    ]
    main(str(__doc__), entries, backward=True)
