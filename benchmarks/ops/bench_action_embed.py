"""Speed of action_embed with cold weights; nothing is printed while the op is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_action_embed.py [--json FILE]``. Under
pytest-benchmark: ``pytest benchmarks/ops/bench_action_embed.py``. Compares the bound call of an
engine with the unfolded encoder in eager PyTorch, bf16 and fp32, time's embedding given.
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
from vlakern.ops.action_embed import BoundEmbed
from vlakern.ops.action_embed.cases import (
    BENCH,
    Case,
    Encoder,
    make_inputs,
    op_arguments,
    plain_encoder,
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


def bind(case: Case, inputs: dict[str, Any]) -> BoundEmbed:
    """The call of an engine."""
    given = op_arguments(case, inputs)
    x = given.pop("x").flatten(0, 1)
    if case.time != "shared":
        given["time"] = given["time"].expand(*inputs["x"].shape[:2], case.width).flatten(0, 1)
    out = torch.empty((x.shape[0], case.width), dtype=case.dtype)
    return ops.action_embed_out(x, **given, out=out)


def cost(case: Case) -> tuple[float, float]:
    """Operations, and bytes: weights, x and y once."""
    rows, size = case.rows * case.positions, case.dtype.itemsize
    weights = case.slots * case.width + (case.layers - 1) * case.width**2
    return 2 * rows * weights, size * (weights + rows * (case.slots + case.width))


def measure(case: Case, repeats: int) -> Row:
    """Checks, then times one case."""
    inputs = make_inputs(case, generator(str(case)))
    call, exact = bind(case, inputs), plain_encoder(case, inputs, torch.float64)
    assert_accurate(call.tensors.y, exact, plain_encoder(case, inputs, case.dtype), str(case))
    cold = torch.zeros(COLD, dtype=torch.uint8)
    contenders: dict[str, Callable[[], object]] = {"vlakern": call}
    for dtype in (torch.bfloat16, torch.float32):
        n: Encoder = inputs["encoder"]
        cast = Encoder(**{name: one.to(dtype) for name, one in vars(n).items()})
        given = inputs | {"encoder": cast, "embedding": inputs["embedding"].to(dtype)}
        contenders[str(dtype)] = lambda given=given, dtype=dtype: plain_encoder(case, given, dtype)
    with torch.no_grad():
        timings = interleave(contenders, repeats, before_each=lambda: cold.add_(1))
    seconds = timings["vlakern"].median
    operations, moved = cost(case)
    return Row(
        "action_embed",
        str(case),
        seconds * 1e6,
        operations / seconds / 1e9,
        moved / seconds / 1e9,
        moved / seconds / bandwidth(),
        timings["torch.bfloat16"].median / seconds,
        timings["torch.float32"].median / seconds,
    )


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_action_embed(benchmark: Any, case: Case) -> None:
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
