"""Speed of gated_mlp with packed weights that no cache holds; nothing is printed while it is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_gated_mlp.py [--threads 1 2] [--json FILE]``;
how it is timed and beside what is said in ``contest.py`` and ``rivals.py``. Under pytest-benchmark:
``pytest benchmarks/ops/bench_gated_mlp.py``.
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
from vlakern.ops.gated_mlp.cases import (
    BENCH,
    Case,
    exact_gated_mlp,
    make_inputs,
    operations,
    plain_gated_mlp,
    traffic,
    written,
)
from vlakern.ops.linear.limits import cold_copy
from vlakern.ops.linear.reference import activate
from vlakern.testing import assert_accurate, generator

sys.path.insert(0, str(Path(__file__).parent))
from contest import Entry, How, main, under_pytest
from plain import Plain


class Layers(nn.Module):
    """The layer in plain PyTorch."""

    def __init__(self, case: Case):
        super().__init__()
        self.gate_up = nn.Linear(case.k, 2 * case.f, bias=False)
        self.down = nn.Linear(case.f, case.n, bias=False)
        self.activation = case.activation

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.down(activate(self.gate_up(x), self.activation)) + residual


def make_entry(case: Case, how: How) -> Entry:
    """Everything that is timed for one case."""
    gate_up, down, inputs = make_inputs(case, generator(str(case)))

    def check() -> None:
        found = ops.gated_mlp(gate_up=gate_up, down=down, **inputs, backend=how.backend)
        plain = plain_gated_mlp(gate_up, down, **inputs)
        assert_accurate(found, exact_gated_mlp(gate_up, down, inputs), plain, str(case))

    def ours() -> Callable[[], object]:
        out = torch.empty(case.m, case.n, dtype=case.dtype)
        weights = [replace(one, data=cold_copy(one.data)) for one in (gate_up, down)]
        rest = {name: inputs[name] for name in ("activation", "residual")}
        return ops.gated_mlp_out(inputs["x"], *weights, **rest, out=out, backend=how.backend)

    plain = Plain({"": Layers(case)}, (inputs["x"], inputs["residual"]))
    moved, out = traffic(case), written(case)
    counts = (operations(case), moved - out, out)
    return Entry("gated_mlp", str(case), case.kind, check, {"vlakern": ours}, plain, *counts)


@pytest.mark.parametrize("case", BENCH[:2], ids=str)
def test_gated_mlp(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the contest's beside it."""
    under_pytest(benchmark, partial(make_entry, case))


if __name__ == "__main__":
    main(str(__doc__), [(str(case), partial(make_entry, case)) for case in BENCH])
