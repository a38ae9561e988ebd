"""Speed of ode_step, in place as the engine calls it; nothing is printed while the op is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_ode_step.py [--device cuda] [--json FILE]``;
how it is timed and beside what is said in ``contest.py`` and ``rivals.py``. Under pytest-benchmark:
``pytest benchmarks/ops/bench_ode_step.py``.
"""

import sys
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from vlakern import ops
from vlakern.ops.ode_step.cases import (
    BENCH,
    Case,
    make_inputs,
    operations,
    plain_ode_step,
    traffic,
)
from vlakern.ops.ode_step.reference import ode_step_reference
from vlakern.testing import assert_accurate, generator

sys.path.insert(0, str(Path(__file__).parent))
from contest import Entry, How, main, under_pytest
from plain import Named, Plain, Run


def check(case: Case, inputs: dict[str, Any], backend: str) -> None:
    """Raises AssertionError if the op is wrong on the very inputs that are timed."""
    wide: dict[str, Any] = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    found = ops.ode_step(**inputs, backend=backend)
    exact, plain = ode_step_reference(**wide), plain_ode_step(**inputs)
    for name, one, best, baseline in zip(("x", "tau"), found, exact, plain, strict=True):
        assert_accurate(one, best, baseline, f"{case}: {name}")


def in_place(inputs: dict[str, Any], backend: str) -> Run:
    """The timed call, with steps of length zero so that repeats keep the values in range."""
    own = deepcopy(inputs)
    own["dtau"].zero_()
    return ops.ode_step_out(**own, x_out=own["x"], tau_out=own["tau"], backend=backend)


def make_entry(case: Case, how: How) -> Entry:
    """Everything that is timed for one case."""
    inputs = make_inputs(case, generator(str(case), how.device))
    names = [name for name in inputs if name != "stage"]
    plain = Named(plain_ode_step, names, stage=case.stage)
    return Entry(
        "ode_step",
        str(case),
        "bf16" if case.v_dtype == torch.bfloat16 else "fp32",
        partial(check, case, inputs, how.backend),
        {"vlakern": partial(in_place, inputs, how.backend)},
        Plain({"": plain}, tuple(inputs[name] for name in names)),
        operations(case),
        # In place: what is written was read before, so no line is fetched again to be written.
        traffic(case),
        0,
        peak="fp32",
    )


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_ode_step(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the contest's beside it."""
    under_pytest(benchmark, partial(make_entry, case))


if __name__ == "__main__":
    entries = [(str(case), partial(make_entry, case)) for case in BENCH]
    main(str(__doc__), entries, devices=("cpu", "cuda"))
