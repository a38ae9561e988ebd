"""Speed of action_decode, bound as a control loop calls it; nothing is printed while it is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_action_decode.py [--json FILE]``; how it is
timed and beside what is said in ``contest.py`` and ``rivals.py``: torch's expressions are those of
the definition. Under pytest-benchmark: ``pytest benchmarks/ops/bench_action_decode.py``.
"""

import sys
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from vlakern import ops
from vlakern.ops.action_decode.cases import BENCH, bimanual_inputs, operations, traffic, written
from vlakern.ops.action_decode.reference import action_decode_reference
from vlakern.testing import assert_accurate, generator

sys.path.insert(0, str(Path(__file__).parent))
from contest import Entry, How, main, under_pytest
from plain import Named, Plain, Run


def check(inputs: dict[str, Any], backend: str) -> None:
    """Raises AssertionError if the op is wrong on the very inputs that are timed."""
    wide: dict[str, Any] = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    found = ops.action_decode(**inputs, backend=backend)
    assert_accurate(found, action_decode_reference(**wide), action_decode_reference(**inputs))


def bound(inputs: dict[str, Any], backend: str) -> Run:
    """The timed call, into memory of its own."""
    given = deepcopy({name: value for name, value in inputs.items() if name != "width"})
    out = torch.empty(*inputs["x"].shape[:2], inputs["width"])
    return ops.action_decode_out(**given, out=out, backend=backend)


def name_of(rows: int, frame: str) -> str:
    return f"B{rows}-H16-A200-{frame}"


def make_entry(rows: int, frame: str, how: How) -> Entry:
    """Chunks of 16 x 200; the tables are fixed, as they are for an embodiment."""
    case = name_of(rows, frame)
    inputs = bimanual_inputs(rows, frame, generator(case))
    names = ("x", "scale", "offset", "base", "affine")
    fixed = {name: value for name, value in inputs.items() if name not in names}
    out = written(inputs)
    return Entry(
        "action_decode",
        case,
        "fp32",
        partial(check, inputs, how.backend),
        {"vlakern": partial(bound, inputs, how.backend)},
        Plain(
            {"": Named(action_decode_reference, names, **fixed)},
            tuple(inputs[name] for name in names),
        ),
        operations(inputs),
        traffic(inputs) - out,
        out,
    )


@pytest.mark.parametrize(("rows", "frame"), BENCH)
def test_action_decode(benchmark: Any, rows: int, frame: str) -> None:
    """One row of pytest-benchmark's table, with the contest's beside it."""
    under_pytest(benchmark, partial(make_entry, rows, frame))


if __name__ == "__main__":
    main(str(__doc__), [(name_of(*one), partial(make_entry, *one)) for one in BENCH])
