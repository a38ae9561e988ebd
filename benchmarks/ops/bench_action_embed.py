"""Speed of action_embed with cold weights; nothing is printed while the op is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_action_embed.py [--threads 1 2] [--json
FILE]``; how it is timed and beside what is said in ``contest.py`` and ``rivals.py``. Compares the
bound call of an engine with the unfolded encoder, time's embedding given. Under pytest-benchmark:
``pytest benchmarks/ops/bench_action_embed.py``.
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
from vlakern.ops.action_embed import BoundEmbed
from vlakern.ops.action_embed.cases import (
    BENCH,
    Case,
    make_inputs,
    op_arguments,
    operations,
    plain_encoder,
    traffic,
    written,
)
from vlakern.ops.linear import PackedLinear
from vlakern.ops.linear.limits import cold_copy
from vlakern.testing import assert_accurate, generator

sys.path.insert(0, str(Path(__file__).parent))
from contest import Entry, How, main, under_pytest
from plain import Plain


class Encoder(nn.Module):
    """The unfolded encoder in plain PyTorch."""

    def __init__(self, case: Case):
        super().__init__()
        m = case.width
        self.first = nn.Linear(case.slots, m)
        self.second, self.third = nn.Linear(2 * m, m), nn.Linear(m, m)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        z = self.first(x)
        if embedding is None:
            return z
        both = torch.cat([z, embedding.expand_as(z)], -1)
        return self.third(nn.functional.silu(self.second(both)))


def bind(case: Case, inputs: dict[str, Any]) -> BoundEmbed:
    """The call of an engine, on its own copy of the weights."""
    given = op_arguments(case, inputs)
    x = given.pop("x").flatten(0, 1)
    if case.time != "shared":
        given["time"] = given["time"].expand(*inputs["x"].shape[:2], case.width).flatten(0, 1)
    for name, one in given.items():
        if isinstance(one, PackedLinear):
            given[name] = replace(one, data=cold_copy(one.data))
    out = torch.empty((x.shape[0], case.width), dtype=case.dtype)
    return ops.action_embed_out(x, **given, out=out)


def make_entry(case: Case, how: How) -> Entry:
    """Everything that is timed for one case."""
    inputs = make_inputs(case, generator(str(case)))

    def check() -> None:
        y, exact = bind(case, inputs).tensors.y, plain_encoder(case, inputs, torch.float64)
        assert_accurate(y, exact, plain_encoder(case, inputs, case.dtype), str(case))

    def ours() -> Callable[[], object]:
        return bind(case, inputs)

    given = (inputs["x"], inputs["embedding"]) if case.layers > 1 else (inputs["x"],)
    plain = Plain({"": Encoder(case)}, given)
    moved, out = traffic(case), written(case)
    counts = (operations(case), moved - out, out)
    return Entry("action_embed", str(case), case.kind, check, {"vlakern": ours}, plain, *counts)


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_action_embed(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the contest's beside it."""
    under_pytest(benchmark, partial(make_entry, case))


if __name__ == "__main__":
    main(str(__doc__), [(str(case), partial(make_entry, case)) for case in BENCH])
