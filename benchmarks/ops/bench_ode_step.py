"""Speed of ode_step, in place as the engine calls it; nothing is printed while the op is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_ode_step.py [--device cuda] [--json FILE]``.
Under pytest-benchmark: ``pytest benchmarks/ops/bench_ode_step.py``.
"""

import argparse
import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from vlakern import ops
from vlakern.ops.ode_step.cases import BENCH, Case, make_inputs, plain_ode_step, traffic
from vlakern.ops.ode_step.reference import ode_step_reference
from vlakern.testing import assert_accurate, generator, interleave_on
from vlakern.testing.timing import cold_copies, copy_bandwidth, interleave_cold, keep_memory

bandwidth = cache(copy_bandwidth)


@dataclass(frozen=True)
class Row:
    """One case on one backend; times are medians of interleaved runs."""

    op: str
    case: str
    device: str
    backend: str
    microseconds: float
    gigabytes_per_second: float
    fraction_of_copy_bandwidth: float
    torch_eager_over_vlakern: float
    clock: str


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


def in_place(inputs: dict[str, Any], backend: str) -> Callable[[], None]:
    """The timed call, with steps of length zero so that repeats keep the values in range."""
    inputs = inputs | {"dtau": torch.zeros_like(inputs["dtau"])}
    x, tau = inputs["x"].clone(), inputs["tau"].clone()
    given = inputs | {"x": x, "tau": tau, "x_out": x, "tau_out": tau, "backend": backend}
    return ops.ode_step_out(**given)


def contenders(inputs: dict[str, Any], backend: str) -> dict[str, Callable[[], object]]:
    """vlakern's call and torch's, by name."""
    return {
        "vlakern": in_place(inputs, backend),
        "torch": lambda: plain_ode_step(**inputs),
    }


def measure(case: Case, device: str, backend: str, repeats: int) -> Row:
    """Checks, then times one case against the same formula in eager PyTorch."""
    inputs = make_inputs(case, generator(str(case), device))
    check(case, inputs, backend)
    if device == "cpu":
        sets = [contenders(deepcopy(inputs), backend) for _ in range(cold_copies(traffic(case)))]
        timings = interleave_cold({n: [one[n] for one in sets] for n in sets[0]}, repeats)
    else:
        timings = interleave_on(device, contenders(inputs, backend), repeats)
    ours, theirs = timings["vlakern"].median, timings["torch"].median
    return Row(
        "ode_step",
        str(case),
        device,
        backend,
        ours * 1e6,
        traffic(case) / ours / 1e9,
        traffic(case) / ours / bandwidth(device),
        theirs / ours,
        timings["vlakern"].clock,
    )


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_ode_step(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the traffic beside it."""
    row = measure(case, "cpu", "auto", repeats=20)
    benchmark.extra_info.update(asdict(row))
    benchmark(in_place(make_inputs(case, generator(str(case))), "auto"))


def table(args: argparse.Namespace) -> None:
    print(f"copy {bandwidth(args.device) / 1e9:.1f} GB/s, {torch.get_num_threads()} threads")
    print(f"{'us':>10} {'GB/s':>8} {'of copy':>8} {'x eager':>8}  backend    case")
    for case in BENCH:
        for backend in args.backend:
            row = measure(case, args.device, backend, args.repeats)
            print(
                f"{row.microseconds:10.1f} {row.gigabytes_per_second:8.1f} "
                f"{row.fraction_of_copy_bandwidth:8.2f} {row.torch_eager_over_vlakern:8.1f}  "
                f"{backend:<10} {case}"
            )
            if args.json:
                with args.json.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--backend", nargs="+", default=["auto"])
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    default = [torch.get_num_threads()]
    parser.add_argument("--threads", type=int, nargs="+", default=default, help="on a CPU")
    args = parser.parse_args()
    keep_memory()
    for threads in args.threads:
        torch.set_num_threads(threads)
        bandwidth.cache_clear()
        table(args)


if __name__ == "__main__":
    main()
