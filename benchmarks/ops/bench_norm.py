"""Speed of norm, bound as the engine calls it; nothing is printed while the op is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_norm.py [--device cuda] [--backward]
[--threads 1 2] [--json FILE]``; how it is timed and beside what is said in ``contest.py`` and
``rivals.py``. Backward, ``kernel`` is the call that autograd makes and ``autograd`` the whole of
``torch.autograd.grad``, which is what the others are to be compared with. Under pytest-benchmark:
``pytest benchmarks/ops/bench_norm.py``.
"""

import sys
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import ops
from vlakern.ops.norm import bound_gradients
from vlakern.ops.norm.cases import (
    BENCH,
    FLOAT_NAMES,
    Case,
    make_inputs,
    operations,
    plain_norm,
    traffic,
    written,
)
from vlakern.ops.norm.reference import norm_reference
from vlakern.testing import assert_accurate, generator

sys.path.insert(0, str(Path(__file__).parent))
from contest import Entry, How, main, under_pytest
from plain import Named, Plain, Run, called


def check(case: Case, inputs: dict[str, Any], backend: str) -> None:
    """Raises AssertionError if the op is wrong on the very inputs that are timed."""
    found = ops.norm(**inputs, backend=backend)
    wide = {n: v.double() if n in FLOAT_NAMES else v for n, v in inputs.items()}
    exact, plain = norm_reference(**wide), plain_norm(**inputs)
    for name, one, best, baseline in zip("yh", found, exact, plain, strict=True):
        assert_accurate(one, best, baseline, f"{case}: {name}")


def bound(inputs: dict[str, Any], backend: str) -> Run:
    """The forward call as an engine makes it."""
    given = deepcopy(inputs)
    outputs: dict[str, Any] = {"y_out": torch.empty_like(given["x"])}
    if "residual" in given:
        outputs["h_out"] = torch.empty_like(given["x"])
    return ops.norm_out(**given, **outputs, backend=backend)


def backward_kernel(inputs: dict[str, Any], backend: str) -> Run:
    """What autograd calls, into memory of its own."""
    given = deepcopy(inputs)
    h, kind, eps = given.pop("x"), given.pop("kind"), given.pop("eps")
    names = ("weight", "bias", "scale", "shift", "gate", "residual", "row_group")
    grad_h = torch.ones_like(h) if "residual" in given else None
    tensors = (h, *(given.get(name) for name in names))
    return bound_gradients(torch.ones_like(h), grad_h, tensors, kind, eps, backend)[1]


def named(function: Callable[..., Any], inputs: dict[str, Any], **fixed: Any) -> Named:
    """The results that count, from the floating arguments."""
    names = [name for name in inputs if name in FLOAT_NAMES]
    rest = {name: value for name, value in inputs.items() if name not in FLOAT_NAMES} | fixed

    def results(**given: Any) -> tuple[Tensor, ...]:
        y, h = function(**given)
        return (y, h) if "residual" in inputs else (y,)

    return Named(results, names, **rest)


def make_entry(case: Case, how: How) -> Entry:
    """Everything that is timed for one case."""
    inputs = make_inputs(case, generator(str(case), how.device))
    given = tuple(value for name, value in inputs.items() if name in FLOAT_NAMES)
    ours: dict[str, Callable[[], Run]] = {"vlakern": partial(bound, inputs, how.backend)}
    passes = "backward" if how.backward else "forward"
    if how.backward:
        fused = named(ops.norm, inputs, backend=how.backend)
        ours = {
            "kernel": partial(backward_kernel, inputs, how.backend),
            "autograd": lambda: called(fused, [one.clone() for one in given], passes),
        }
    out = written(case, how.backward)
    return Entry(
        "norm",
        str(case),
        "bf16" if case.dtype == torch.bfloat16 else "fp32",
        partial(check, case, inputs, how.backend),
        ours,
        Plain({"": named(plain_norm, inputs)}, given, passes=passes),
        operations(case, how.backward),
        traffic(case, how.backward) - out,
        out,
        peak="fp32",
    )


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_norm(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the contest's beside it."""
    under_pytest(benchmark, partial(make_entry, case))


if __name__ == "__main__":
    entries = [(str(case), partial(make_entry, case)) for case in BENCH]
    main(str(__doc__), entries, devices=("cpu", "cuda"), backward=True)
