"""Speed of action_unembed with cold weights; nothing is printed while the op is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_action_unembed.py [--threads 1 2] [--json
FILE]``; how it is timed and beside what is said in ``contest.py`` and ``rivals.py``. Under
pytest-benchmark: ``pytest benchmarks/ops/bench_action_unembed.py``.
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
from vlakern.ops.action_unembed import BoundUnembed
from vlakern.ops.action_unembed.cases import (
    BENCH,
    Case,
    make_inputs,
    op_arguments,
    operations,
    plain_decoder,
    traffic,
    written,
)
from vlakern.ops.linear import PackedLinear
from vlakern.ops.linear.limits import cold_copy
from vlakern.testing import assert_accurate, generator

sys.path.insert(0, str(Path(__file__).parent))
from contest import Entry, How, main, under_pytest
from plain import Plain


class Decoder(nn.Module):
    """The decoder in plain PyTorch."""

    def __init__(self, case: Case):
        super().__init__()
        assert not case.norm.startswith("layer")
        assert not case.adaptive
        self.norm = nn.RMSNorm(case.width, 1e-6) if case.norm else nn.Identity()
        wide = nn.Linear(case.width, case.hidden) if case.hidden else nn.Identity()
        self.hidden, self.relu = wide, nn.ReLU() if case.hidden else nn.Identity()
        self.last = nn.Linear(case.hidden or case.width, case.slots)

    def forward(self, h: Tensor) -> Tensor:
        return self.last(self.relu(self.hidden(self.norm(h))))


def bind(case: Case, inputs: dict[str, Any]) -> BoundUnembed:
    """The call of an engine, on its own copy of the weights."""
    given = op_arguments(case, inputs)
    for name, one in given.items():
        if isinstance(one, PackedLinear):
            given[name] = replace(one, data=cold_copy(one.data))
    out = torch.empty((case.rows, case.slots), dtype=case.dtype)
    return ops.action_unembed_out(**given, out=out)


def make_entry(case: Case, how: How) -> Entry:
    """Everything that is timed for one case."""
    inputs = make_inputs(case, generator(str(case)))

    def check() -> None:
        y, exact = bind(case, inputs).tensors.y, plain_decoder(inputs, torch.float64)
        assert_accurate(y, exact, plain_decoder(inputs, case.dtype), str(case))

    def ours() -> Callable[[], object]:
        return bind(case, inputs)

    plain = Plain({"": Decoder(case)}, (inputs["h"],))
    moved, out = traffic(case), written(case)
    counts = (operations(case), moved - out, out)
    return Entry("action_unembed", str(case), case.kind, check, {"vlakern": ours}, plain, *counts)


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_action_unembed(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the contest's beside it."""
    under_pytest(benchmark, partial(make_entry, case))


if __name__ == "__main__":
    main(str(__doc__), [(str(case), partial(make_entry, case)) for case in BENCH])
