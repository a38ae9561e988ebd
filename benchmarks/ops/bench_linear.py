"""Speed of linear with packed weights that no cache holds; nothing is printed while it is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_linear.py [--threads 2] [--json FILE]``. Every
repeat runs each contender once on the next of many copies of its weights, and a plain reading of as
many bytes; fractions and ratios are of medians, ``best`` of shortest times. ``of limit`` is the
larger of memory's time and the registers' time over ours. Under pytest-benchmark:
``pytest benchmarks/ops/bench_linear.py``.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vlakern import ops
from vlakern.ops.linear import PackedLinear
from vlakern.ops.linear.cases import (
    BENCH,
    KIND_BYTES,
    Case,
    exact_linear,
    make_inputs,
    operations,
    plain_linear,
    traffic,
)
from vlakern.ops.linear.limits import ROOM, ColdMemory, cold_copy, peak_rate
from vlakern.testing import Timing, assert_accurate, generator, interleave

Run = Callable[[], object]
# So many passes that on a busy machine some have every core to themselves.
peak = cache(lambda kind: peak_rate(kind, passes=300))


@dataclass(frozen=True)
class Row:
    """One case; rates are of the median, ``best_`` ones of the shortest time."""

    op: str
    case: str
    threads: int
    load: float
    microseconds: float
    best_microseconds: float
    gigabytes_per_second: float
    gigaflops: float
    of_bandwidth: float
    best_of_bandwidth: float
    of_peak: float
    best_of_peak: float
    of_limit: float
    best_of_limit: float
    over: dict[str, float]


def check(case: Case, packed: PackedLinear, inputs: dict[str, Any]) -> None:
    """Raises AssertionError if the op is wrong on the very inputs that are timed."""
    found = ops.linear(weight=packed, **inputs)
    plain = plain_linear(packed, packed.unpack(), **inputs)
    assert_accurate(found, exact_linear(packed, inputs), plain, str(case))


def take_turns(make: Callable[[], Run], bytes_each: int) -> Run:
    """A call that runs the next of so many contenders that their weights fit no cache."""
    turns: Iterator[Run] = cycle([make() for _ in range(max(2, -(-ROOM // bytes_each)))])
    return lambda: next(turns)()


def contenders(case: Case, packed: PackedLinear, inputs: dict[str, Any]) -> dict[str, Run]:
    """The op, and what torch offers for the same product."""
    x, residual = inputs["x"], inputs["residual"]
    wide = torch.randn(case.n, case.k) / case.k**0.5
    size = case.n * case.k

    def ours() -> Run:
        out = torch.empty(case.m, case.columns, dtype=case.out_dtype)
        weights = replace(packed, data=cold_copy(packed.data))
        given = {name: value for name, value in inputs.items() if name != "out_dtype"}
        return ops.linear_out(weight=weights, out=out, **given)

    def eager(dtype: torch.dtype) -> Callable[[], Run]:
        def make() -> Run:
            weight, rows, rest = wide.to(dtype, copy=True), x.to(dtype), residual.to(dtype)
            return lambda: functional.linear(rows, weight) + rest

        return make

    runs = {
        "vlakern": take_turns(ours, size * KIND_BYTES[case.kind]),
        "eager bf16": take_turns(eager(torch.bfloat16), size * 2),
        "eager fp32": take_turns(eager(torch.float32), size * 4),
    }
    if torch.backends.mkldnn.is_available():
        runs["prepacked bf16"] = take_turns(lambda: prepacked(x, wide, residual), size * 2)
    return runs


def prepacked(x: Tensor, weight: Tensor, residual: Tensor) -> Run:
    """What inductor calls for frozen weights: oneDNN on weights in its own layout."""
    reorder = torch.ops.mkldnn._reorder_linear_weight
    blocked = reorder(weight.bfloat16(), x.shape[0])
    call = torch.ops.mkldnn._linear_pointwise.binary
    rows, rest = x.bfloat16(), residual.bfloat16()
    return lambda: call(rows, rest, blocked, None, "add")


def measure(case: Case, repeats: int, memory: ColdMemory) -> Row:
    """Checks, then times one case."""
    packed, inputs = make_inputs(case, generator(str(case)))
    check(case, packed, inputs)
    bytes_moved = traffic(case)
    runs = contenders(case, packed, inputs)
    runs["read"] = lambda: memory.read(bytes_moved)
    times = interleave(runs, repeats)
    fastest = peak(case.kind)
    ours, read = times.pop("vlakern"), times.pop("read")
    limits = [operations(case) / fastest if fastest else 0.0, read.median]
    best_limits = [limits[0], read.best]
    return Row(
        "linear",
        str(case),
        torch.get_num_threads(),
        os.getloadavg()[0],
        ours.median * 1e6,
        ours.best * 1e6,
        bytes_moved / ours.median / 1e9,
        operations(case) / ours.median / 1e9,
        read.median / ours.median,
        read.best / ours.best,
        limits[0] / ours.median,
        limits[0] / ours.best,
        max(limits) / ours.median,
        max(best_limits) / ours.best,
        {name: ratio(one, ours) for name, one in times.items()},
    )


def ratio(one: Timing, ours: Timing) -> float:
    """How many times longer another takes."""
    return one.median / ours.median


@pytest.mark.parametrize("case", BENCH[:4], ids=str)
def test_linear(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the fractions beside it."""
    benchmark.extra_info.update(asdict(measure(case, 10, ColdMemory())))
    packed, inputs = make_inputs(case, generator(str(case)))
    benchmark(lambda: ops.linear(weight=packed, **inputs))


HEAD = (
    f"{'us':>8} {'GB/s':>6} {'GF/s':>6} {'of bw':>6} {'best':>5} {'of peak':>7} {'best':>5} "
    f"{'of limit':>8} {'best':>5} {'x best':>6}  case"
)


def line(row: Any) -> str:
    """One row for people."""
    fastest = min(row.over, key=row.over.__getitem__)
    return (
        f"{row.microseconds:8.0f} {row.gigabytes_per_second:6.1f} {row.gigaflops:6.0f} "
        f"{row.of_bandwidth:6.2f} {row.best_of_bandwidth:5.2f} {row.of_peak:7.2f} "
        f"{row.best_of_peak:5.2f} {row.of_limit:8.2f} {row.best_of_limit:5.2f} "
        f"{row.over[fastest]:6.2f}  {row.case} ({fastest})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    memory = ColdMemory()
    best = max(memory.read(64 << 20) for _ in range(10))
    peaks = ", ".join(f"{kind} {peak(kind) / 1e9:.0f} GFLOP/s" for kind in KIND_BYTES)
    print(f"read {best / 1e9:.1f} GB/s, {peaks}, {args.threads} threads")
    print(HEAD)
    for case in BENCH:
        if args.only not in str(case):
            continue
        row = measure(case, args.repeats, memory)
        print(line(row), flush=True)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
