"""Speed of linear with packed weights that no cache holds; nothing is printed while it is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_linear.py [--threads 1 2] [--json FILE]``; how
it is timed and beside what is said in ``contest.py`` and ``rivals.py``. Under pytest-benchmark:
``pytest benchmarks/ops/bench_linear.py``.
"""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlakern import ops
from vlakern.ops.linear.cases import (
    BENCH,
    Case,
    exact_linear,
    make_inputs,
    operations,
    plain_linear,
    traffic,
    written,
)
from vlakern.ops.linear.limits import cold_copy
from vlakern.testing import assert_accurate, generator

sys.path.insert(0, str(Path(__file__).parent))
from contest import Entry, How, main, under_pytest
from plain import Plain


class Product(nn.Module):
    """A product and a residual in plain PyTorch."""

    def __init__(self, case: Case):
        super().__init__()
        self.product = nn.Linear(case.k, case.n, bias=False)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.product(x) + residual


def make_entry(case: Case, how: How) -> Entry:
    """Everything that is timed for one case."""
    packed, inputs = make_inputs(case, generator(str(case)))

    def check() -> None:
        found = ops.linear(weight=packed, **inputs, backend=how.backend)
        plain = plain_linear(packed, packed.unpack(), **inputs)
        assert_accurate(found, exact_linear(packed, inputs), plain, str(case))

    def ours() -> Callable[[], object]:
        out = torch.empty(case.m, case.columns, dtype=case.out_dtype)
        weights = replace(packed, data=cold_copy(packed.data))
        given = {name: value for name, value in inputs.items() if name != "out_dtype"}
        return ops.linear_out(weight=weights, out=out, **given, backend=how.backend)

    plain = Plain({"": Product(case)}, (inputs["x"], inputs["residual"]))
    moved, out = traffic(case), written(case)
    counts = (operations(case), moved - out, out)
    return Entry("linear", str(case), case.kind, check, {"vlakern": ours}, plain, *counts)


@pytest.mark.parametrize("case", BENCH[:4], ids=str)
def test_linear(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the contest's beside it."""
    under_pytest(benchmark, partial(make_entry, case))


if __name__ == "__main__":
    main(str(__doc__), [(str(case), partial(make_entry, case)) for case in BENCH])
