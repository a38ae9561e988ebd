"""Speed of action_decode, bound as a control loop calls it; nothing is printed while it is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_action_decode.py [--json FILE]``.
Under pytest-benchmark: ``pytest benchmarks/ops/bench_action_decode.py``.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from vlakern import ops
from vlakern.ops.action_decode.cases import BENCH, bimanual_inputs
from vlakern.ops.action_decode.reference import action_decode_reference
from vlakern.testing import assert_accurate, generator, interleave


@dataclass(frozen=True)
class Row:
    """One case; times are medians of interleaved runs, the definition on one torch thread."""

    op: str
    case: str
    device: str
    backend: str
    microseconds: float
    reference_over_vlakern: float


def check(inputs: dict[str, Any], backend: str) -> None:
    """Raises AssertionError if the op is wrong on the very inputs that are timed."""
    wide: dict[str, Any] = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    found = ops.action_decode(**inputs, backend=backend)
    assert_accurate(found, action_decode_reference(**wide), action_decode_reference(**inputs))


def bound(inputs: dict[str, Any], backend: str) -> Callable[[], None]:
    """The timed call, into memory of its own."""
    given = {name: value for name, value in inputs.items() if name != "width"}
    out = torch.empty(*inputs["x"].shape[:2], inputs["width"])
    return ops.action_decode_out(**given, out=out, backend=backend)


def measure(rows: int, frame: str, backend: str, repeats: int) -> Row:
    """Checks, then times chunks of 16 x 200 against the definition in torch expressions."""
    case = f"B{rows}-H16-A200-{frame}"
    inputs = bimanual_inputs(rows, frame, generator(case))
    check(inputs, backend)
    contenders = {"vlakern": bound(inputs, backend), "reference": bound(inputs, "reference")}
    timings = interleave(contenders, repeats)
    ours, theirs = timings["vlakern"].median, timings["reference"].median
    return Row("action_decode", case, "cpu", backend, ours * 1e6, theirs / ours)


@pytest.mark.parametrize(("rows", "frame"), BENCH)
def test_action_decode(benchmark: Any, rows: int, frame: str) -> None:
    """One row of pytest-benchmark's table, with the ratio beside it."""
    row = measure(rows, frame, "auto", repeats=20)
    benchmark.extra_info.update(asdict(row))
    benchmark(bound(bimanual_inputs(rows, frame, generator(row.case)), "auto"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", nargs="+", default=["auto"])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'us':>10} {'x reference':>12}  backend    case")
    for rows, frame in BENCH:
        for backend in args.backend:
            row = measure(rows, frame, backend, args.repeats)
            ratio = row.reference_over_vlakern
            print(f"{row.microseconds:10.1f} {ratio:12.1f}  {backend:<10} {row.case}")
            if args.json:
                with args.json.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
