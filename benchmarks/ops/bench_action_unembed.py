"""Speed of action_unembed with cold weights; nothing is printed while the op is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_action_unembed.py [--json FILE]``. Under
pytest-benchmark: ``pytest benchmarks/ops/bench_action_unembed.py``. Compares the bound call of an
engine with eager PyTorch, bf16 and fp32.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from vlakern import ops
from vlakern.ops.action_unembed import BoundUnembed
from vlakern.ops.action_unembed.cases import (
    BENCH,
    Case,
    make_inputs,
    op_arguments,
    plain_decoder,
)
from vlakern.testing import assert_accurate, generator, interleave
from vlakern.testing.timing import copy_bandwidth

COLD = 128 << 20  # bytes written between runs

bandwidth = cache(copy_bandwidth)


@dataclass(frozen=True)
class Row:
    """One case; times are medians of interleaved runs, weights out of the caches."""

    op: str
    case: str
    microseconds: float
    gflops: float
    gigabytes_per_second: float
    fraction_of_copy_bandwidth: float
    eager_bf16_over_vlakern: float
    eager_fp32_over_vlakern: float


def bind(case: Case, inputs: dict[str, Any]) -> BoundUnembed:
    """The call of an engine."""
    out = torch.empty((case.rows, case.slots), dtype=case.dtype)
    return ops.action_unembed_out(**op_arguments(case, inputs), out=out)


def cost(case: Case) -> tuple[float, float]:
    """Operations, and bytes: weights, h and y once."""
    weights = case.width * case.slots
    if case.hidden:
        weights = case.width * case.hidden + case.hidden * case.slots
    return 2 * case.rows * weights, case.dtype.itemsize * (
        weights + case.rows * (case.width + case.slots)
    )


def eager(inputs: dict[str, Any], dtype: torch.dtype) -> Callable[[], object]:
    """The same in plain PyTorch, weights cast before."""
    given: dict[str, Any] = {
        n: one.to(dtype) if torch.is_tensor(one) else one for n, one in inputs.items()
    }
    norm = given["norm"]

    def run() -> object:
        h = given["h"]
        if norm is not None:
            weight = 1 + norm.weight if norm.kind == "rms_plus_one" else norm.weight
            h = torch.nn.functional.rms_norm(h, h.shape[1:], weight.to(dtype), norm.eps)
        if given["w_hidden"] is not None:
            h = torch.nn.functional.linear(h, given["w_hidden"], given["b_hidden"]).relu()
        return torch.nn.functional.linear(h, given["w_out"], given["b_out"])

    return run


def measure(case: Case, repeats: int) -> Row:
    """Checks, then times one case."""
    inputs = make_inputs(case, generator(str(case)))
    call, exact = bind(case, inputs), plain_decoder(inputs, torch.float64)
    assert_accurate(call.tensors.y, exact, plain_decoder(inputs, case.dtype), str(case))
    cold = torch.zeros(COLD, dtype=torch.uint8)
    contenders: dict[str, Callable[[], object]] = {"vlakern": call}
    contenders |= {str(one): eager(inputs, one) for one in (torch.bfloat16, torch.float32)}
    with torch.no_grad():
        timings = interleave(contenders, repeats, before_each=lambda: cold.add_(1))
    seconds = timings["vlakern"].median
    operations, moved = cost(case)
    return Row(
        "action_unembed",
        str(case),
        seconds * 1e6,
        operations / seconds / 1e9,
        moved / seconds / 1e9,
        moved / seconds / bandwidth(),
        timings["torch.bfloat16"].median / seconds,
        timings["torch.float32"].median / seconds,
    )


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_action_unembed(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table."""
    benchmark.extra_info.update(asdict(measure(case, repeats=10)))
    benchmark(bind(case, make_inputs(case, generator(str(case)))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    args = parser.parse_args()
    print(f"copy {bandwidth() / 1e9:.1f} GB/s, {torch.get_num_threads()} threads")
    print(f"{'us':>9} {'GFLOP/s':>8} {'GB/s':>6} {'of copy':>8} {'x bf16':>7} {'x fp32':>7}  case")
    for case in BENCH:
        row = measure(case, args.repeats)
        print(
            f"{row.microseconds:9.1f} {row.gflops:8.1f} {row.gigabytes_per_second:6.1f} "
            f"{row.fraction_of_copy_bandwidth:8.2f} {row.eager_bf16_over_vlakern:7.1f} "
            f"{row.eager_fp32_over_vlakern:7.1f}  {case}"
        )
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
