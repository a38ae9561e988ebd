"""Speed of qkv_prep, bound as the engine calls it; nothing is printed while the op is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_qkv_prep.py [--device cuda] [--backward]
[--threads 1 2] [--json FILE]``; how it is timed and beside what is said in ``contest.py`` and
``rivals.py``. Backward, ``kernel`` is the call that autograd makes and ``autograd`` the whole of
``torch.autograd.grad``, which is what the others are to be compared with. Under pytest-benchmark:
``pytest benchmarks/ops/bench_qkv_prep.py``.
"""

import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlakern import ops
from vlakern.ops.qkv_prep import bound_gradients
from vlakern.ops.qkv_prep.cases import (
    BENCH,
    Case,
    flat,
    make_inputs,
    operations,
    plain_qkv_prep,
    traffic,
    written,
)
from vlakern.ops.qkv_prep.reference import qkv_prep_reference, split_heads
from vlakern.testing import assert_accurate, generator

sys.path.insert(0, str(Path(__file__).parent))
from contest import Entry, How, main, under_pytest
from plain import Plain, Run, called

LISTS = ("qkv", "q_weight", "k_weight")


class Prep(nn.Module):
    """torch's norm and the rotation written out, with what a model prepares once: angles of every
    expert's rows, and the joint order."""

    def __init__(self, case: Case, inputs: dict[str, Any]):
        super().__init__()
        self.case, self.eps, self.sizes = case, inputs["eps"], [len(inputs[n]) for n in LISTS]
        self.order = nn.Buffer(torch.cat(inputs["rows"]).argsort())
        for i, rows in enumerate(inputs["rows"]):
            for name in ("cos", "sin"):
                self.register_buffer(f"{name}{i}", inputs[name][rows.long()][:, None])

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        qkv, *weights = cut(given, self.sizes)
        made, case = [], self.case
        for i, (q, k, v) in enumerate(split_heads(qkv, len(case.tokens), case.heads, case.groups)):
            turned = []
            for x, own in zip((q, k), weights, strict=True):
                if own:
                    x = F.rms_norm(x, x.shape[-1:], own[i] + int(case.plus_one), self.eps)
                low, high = x.chunk(2, -1)
                c, s = self.get_buffer(f"cos{i}"), self.get_buffer(f"sin{i}")
                turned.append(torch.cat([low * c - high * s, high * c + low * s], -1))
            made.append((*turned, v))
        q, k, v = (torch.cat(one) for one in zip(*made, strict=True))
        return q, k[self.order], v[self.order]


def cut(given: tuple[Tensor, ...], sizes: list[int]) -> list[list[Tensor]]:
    """The lists of arguments, which stand one after the other."""
    left = iter(given)
    return [list(islice(left, size)) for size in sizes]


def check(case: Case, inputs: dict[str, Any], backend: str) -> None:
    """Raises AssertionError if the op is wrong on the very inputs that are timed."""
    found = ops.qkv_prep(**inputs, backend=backend)
    wide = dict(inputs)
    wide |= {name: [x.double() for x in inputs[name]] for name in LISTS}
    wide |= {name: inputs[name].double() for name in ("cos", "sin")}
    exact = qkv_prep_reference(**wide)
    for name, one, best, baseline in zip(
        "qkv", found, exact, plain_qkv_prep(**inputs), strict=True
    ):
        assert_accurate(one, best, baseline, f"{case}: {name}")


def bound(case: Case, given: dict[str, Any], backend: str) -> Run:
    """The forward call as an engine makes it: every expert into the joint buffers."""
    inputs = deepcopy(given)
    q, k, v = (torch.empty_like(one) for one in ops.qkv_prep(**inputs, backend=backend))
    names = ("cos", "sin", "heads", "groups", "eps", "plus_one")
    shared = {name: inputs[name] for name in names} | {"k_out": k, "v_out": v, "backend": backend}
    per = len(inputs["qkv"]) // len(case.tokens)
    calls, slices = [], q.split(list(case.tokens))
    for i, rows in enumerate(inputs["rows"]):
        weights = [inputs[name][i] if inputs[name] else None for name in ("q_weight", "k_weight")]
        parts = inputs["qkv"][i * per : (i + 1) * per]
        one = {"rows": rows, "q_out": slices[i], "q_weight": weights[0], "k_weight": weights[1]}
        calls.append(ops.qkv_prep_out(parts, **one, **shared))

    def run() -> None:
        for call in calls:
            call()

    return calls[0] if len(calls) == 1 else run


def with_autograd(inputs: dict[str, Any], backend: str) -> Run:
    """The whole backward pass, gradients of all but the angles."""
    sizes = [len(inputs[name]) for name in LISTS]
    rest = {name: value for name, value in inputs.items() if name not in LISTS}

    def prep(*given: Tensor) -> tuple[Tensor, ...]:
        qkv, q_weight, k_weight = cut(given, sizes)
        return ops.qkv_prep(qkv, q_weight, k_weight, **rest, backend=backend)

    return called(prep, [one.clone() for one in flat(inputs)[:-2]], "backward")


def backward_kernel(given: dict[str, Any], backend: str) -> Run:
    """What autograd calls, into memory of its own; without gradients of the angles."""
    inputs = deepcopy(given)
    found = ops.qkv_prep(**inputs, backend=backend)
    lists = (*LISTS, "cos", "sin", "rows", "heads", "groups", "eps")
    seeds = (torch.ones_like(one) for one in found)
    rest: Any = (*seeds, *(inputs[name] for name in lists), inputs["plus_one"], backend, False)
    return bound_gradients(*rest)[1]


def make_entry(case: Case, how: How) -> Entry:
    """Everything that is timed for one case."""
    inputs = make_inputs(case, generator(str(case), how.device))
    ours: dict[str, Callable[[], Run]] = {"vlakern": partial(bound, case, inputs, how.backend)}
    if how.backward:
        ours = {
            "kernel": partial(backward_kernel, inputs, how.backend),
            "autograd": partial(with_autograd, inputs, how.backend),
        }
    passes, out = "backward" if how.backward else "forward", written(case, how.backward)
    return Entry(
        "qkv_prep",
        str(case),
        "bf16" if case.dtype == torch.bfloat16 else "fp32",
        partial(check, case, inputs, how.backend),
        ours,
        Plain({"": Prep(case, inputs)}, tuple(flat(inputs)[:-2]), passes=passes),
        operations(case, how.backward),
        traffic(case, how.backward) - out,
        out,
        peak="fp32",
    )


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_qkv_prep(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the contest's beside it."""
    under_pytest(benchmark, partial(make_entry, case))


if __name__ == "__main__":
    entries = [(str(case), partial(make_entry, case)) for case in BENCH]
    main(str(__doc__), entries, devices=("cpu", "cuda"), backward=True)
