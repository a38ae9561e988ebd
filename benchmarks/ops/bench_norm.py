"""Speed of norm, bound as the engine calls it; nothing is printed while the op is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_norm.py [--device cuda] [--backward]
[--json FILE]``. Under pytest-benchmark: ``pytest benchmarks/ops/bench_norm.py``.
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
from torch import Tensor

from vlakern import ops
from vlakern.ops.norm import bound_gradients
from vlakern.ops.norm.cases import BENCH, FLOAT_NAMES, Case, make_inputs, plain_norm
from vlakern.ops.norm.reference import norm_reference
from vlakern.testing import assert_accurate, generator, interleave_on
from vlakern.testing.timing import cold_copies, copy_bandwidth, interleave_cold, keep_memory

bandwidth = cache(copy_bandwidth)


@dataclass(frozen=True)
class Row:
    """One case on one backend; times are medians of interleaved runs.

    Backward, the time and its rates are those of the call that autograd makes, and the ratio that
    of ``torch.autograd.grad`` as a whole.

    ``fraction_of_copy_bandwidth`` may exceed 1 where caches hold the case. The rival is the best of
    eager PyTorch in the case's dtype and in fp32, and of torch.compile where asked for.
    """

    op: str
    case: str
    direction: str
    device: str
    backend: str
    microseconds: float
    gigaflops_per_second: float
    gigabytes_per_second: float
    fraction_of_copy_bandwidth: float
    rival: str
    rival_over_vlakern: float
    clock: str
    microseconds_with_autograd: float


def traffic(case: Case, backward: bool) -> int:
    """Bytes that the mathematics must move: x (and residual) read, y (and h) written; backward
    reads dy, h (and dh) and writes dx (and the residual's gradient)."""
    streams = 2 + 2 * ("residual" in case.parts) + backward
    return case.rows * case.width * case.dtype.itemsize * streams


def operations(case: Case, backward: bool) -> int:
    """Additions and multiplications: some 4 an element and one for each part, 12 backward."""
    return case.rows * case.width * ((12 if backward else 4) + len(case.parts))


def widened(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {n: v.to(dtype) if n in FLOAT_NAMES else v for n, v in inputs.items()}


def check(case: Case, inputs: dict[str, Any], backend: str) -> None:
    """Raises AssertionError if the op is wrong on the very inputs that are timed."""
    found = ops.norm(**inputs, backend=backend)
    exact, plain = norm_reference(**widened(inputs, torch.float64)), plain_norm(**inputs)
    for name, one, best, baseline in zip("yh", found, exact, plain, strict=True):
        assert_accurate(one, best, baseline, f"{case}: {name}")


def bound(inputs: dict[str, Any], backend: str) -> Callable[[], object]:
    """The forward call as an engine makes it."""
    outputs: dict[str, Any] = {"y_out": torch.empty_like(inputs["x"])}
    if "residual" in inputs:
        outputs["h_out"] = torch.empty_like(inputs["x"])
    return ops.norm_out(**inputs, **outputs, backend=backend)


def backward_of(norm: Callable[..., Any], inputs: dict[str, Any]) -> Callable[[], object]:
    """The backward pass of a call, gradients of all floating arguments."""
    leaves = {n: inputs[n].detach().requires_grad_() for n in FLOAT_NAMES if n in inputs}
    y, h = norm(**inputs | leaves)
    outputs = [y, h] if "residual" in inputs else [y]
    seeds = [torch.ones_like(one) for one in outputs]
    wanted: list[Tensor] = list(leaves.values())
    return lambda: torch.autograd.grad(outputs, wanted, seeds, retain_graph=True)


def backward_kernel(inputs: dict[str, Any], backend: str) -> Callable[[], object]:
    """What autograd calls, into memory of its own."""
    given = dict(inputs)
    h, kind, eps = given.pop("x"), given.pop("kind"), given.pop("eps")
    names = ("weight", "bias", "scale", "shift", "gate", "residual", "row_group")
    grad_h = torch.ones_like(h) if "residual" in given else None
    tensors = (h, *(given.get(name) for name in names))
    return bound_gradients(torch.ones_like(h), grad_h, tensors, kind, eps, backend)[1]


def contenders(
    inputs: dict[str, Any], backend: str, backward: bool
) -> dict[str, Callable[[], object]]:
    """vlakern's call and torch's, by name."""
    wide = widened(inputs, torch.float32)
    if not backward:
        return {
            "vlakern": bound(inputs, backend),
            "eager": lambda: plain_norm(**inputs),
            "eager fp32": lambda: plain_norm(**wide),
        }
    return {
        "vlakern": backward_kernel(inputs, backend),
        "autograd": backward_of(lambda **given: ops.norm(**given, backend=backend), inputs),
        "eager": backward_of(plain_norm, inputs),
        "eager fp32": backward_of(plain_norm, wide),
    }


def rival_compiled(inputs: dict[str, Any], backward: bool) -> Callable[[], object]:
    """torch.compile of the same formula in the case's dtype."""
    plain = torch.compile(plain_norm)
    return backward_of(plain, inputs) if backward else lambda: plain(**inputs)


def rivals(
    inputs: dict[str, Any], backend: str, backward: bool, compiled: bool
) -> dict[str, Callable[[], object]]:
    """The contenders, with torch.compile's where asked for."""
    calls = contenders(inputs, backend, backward)
    return calls | ({"inductor": rival_compiled(inputs, backward)} if compiled else {})


def measure(
    case: Case,
    device: str,
    backend: str,
    repeats: int,
    backward: bool = False,
    compiled: bool = False,
) -> Row:
    """Checks, then times one case against the same formula in eager PyTorch."""
    inputs = make_inputs(case, generator(str(case), device))
    check(case, inputs, backend)
    with torch.set_grad_enabled(backward):
        if device == "cpu":
            count = cold_copies(traffic(case, backward))
            many = [deepcopy(inputs) for _ in range(count)]
            sets = [rivals(one, backend, backward, compiled) for one in many]
            timings = interleave_cold({n: [one[n] for one in sets] for n in sets[0]}, repeats)
        else:
            timings = interleave_on(device, rivals(inputs, backend, backward, compiled), repeats)
    timed = timings.pop("vlakern")
    ours = timed.median
    whole = timings.pop("autograd", timed).median
    rival = min(timings, key=lambda name: timings[name].median)
    moved = traffic(case, backward)
    return Row(
        "norm",
        str(case),
        "backward" if backward else "forward",
        device,
        backend,
        ours * 1e6,
        operations(case, backward) / ours / 1e9,
        moved / ours / 1e9,
        moved / ours / bandwidth(device),
        rival,
        timings[rival].median / whole,
        timed.clock,
        whole * 1e6,
    )


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_norm(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the traffic beside it."""
    row = measure(case, "cpu", "auto", repeats=20)
    benchmark.extra_info.update(asdict(row))
    benchmark(bound(make_inputs(case, generator(str(case))), "auto"))


def table(args: argparse.Namespace) -> None:
    print(f"copy {bandwidth(args.device) / 1e9:.1f} GB/s, {torch.get_num_threads()} threads")
    rates = f"{'GFLOP/s':>8} {'GB/s':>8} {'of copy':>8} {'x torch':>8}"
    print(f"{'us':>10} {'autograd':>9} {rates}  rival       case")
    for case in BENCH:
        for backend in args.backend:
            row = measure(case, args.device, backend, args.repeats, args.backward, args.compiled)
            print(
                f"{row.microseconds:10.1f} {row.microseconds_with_autograd:9.1f} "
                f"{row.gigaflops_per_second:8.1f} "
                f"{row.gigabytes_per_second:8.1f} {row.fraction_of_copy_bandwidth:8.2f} "
                f"{row.rival_over_vlakern:8.1f}  {row.rival:<10}  {backend} {case}"
            )
            if args.json:
                with args.json.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--backend", nargs="+", default=["auto"])
    parser.add_argument("--backward", action="store_true", help="the backward pass")
    parser.add_argument("--compiled", action="store_true", help="torch.compile among the rivals")
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
