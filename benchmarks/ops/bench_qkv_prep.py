"""Speed of qkv_prep, bound as the engine calls it; nothing is printed while the op is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_qkv_prep.py [--device cuda] [--backward]
[--json FILE]``. Under pytest-benchmark: ``pytest benchmarks/ops/bench_qkv_prep.py``.
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
from vlakern.ops.qkv_prep import bound_gradients
from vlakern.ops.qkv_prep.cases import BENCH, Case, flat, make_inputs, plain_qkv_prep
from vlakern.ops.qkv_prep.reference import qkv_prep_reference
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
    """Bytes that the mathematics must move: qkv read and q, k, v written, and the angles; backward
    reads q, k and three gradients and writes three."""
    count, groups = sum(case.tokens), 2 * case.groups
    elements = (case.heads + groups) * 2 + (case.heads + case.groups if backward else 0)
    return count * case.head_dim * (elements * case.dtype.itemsize + 4)


def operations(case: Case, backward: bool) -> int:
    """Multiplications and additions: 3 an element of q and k for RoPE, 4 for the norm, thrice
    that backward."""
    turned = sum(case.tokens) * (case.heads + case.groups) * case.head_dim
    return turned * (7 if case.weight_dtype else 3) * (3 if backward else 1)


def replaced(inputs: dict[str, Any], change: Callable[[Any], Any]) -> dict[str, Any]:
    """The arguments with every floating tensor changed."""
    lists = {n: [change(x) for x in inputs[n]] for n in ("qkv", "q_weight", "k_weight")}
    return inputs | lists | {name: change(inputs[name]) for name in ("cos", "sin")}


def check(case: Case, inputs: dict[str, Any], backend: str) -> None:
    """Raises AssertionError if the op is wrong on the very inputs that are timed."""
    found = ops.qkv_prep(**inputs, backend=backend)
    exact = qkv_prep_reference(**replaced(inputs, lambda x: x.double()))
    for name, one, best, baseline in zip(
        "qkv", found, exact, plain_qkv_prep(**inputs), strict=True
    ):
        assert_accurate(one, best, baseline, f"{case}: {name}")


def bound(case: Case, inputs: dict[str, Any], backend: str) -> Callable[[], object]:
    """The forward call as an engine makes it: every expert into the joint buffers."""
    q, k, v = (torch.empty_like(one) for one in ops.qkv_prep(**inputs, backend=backend))
    names = ("cos", "sin", "heads", "groups", "eps", "plus_one")
    shared = {name: inputs[name] for name in names} | {"k_out": k, "v_out": v, "backend": backend}
    per = len(inputs["qkv"]) // len(case.tokens)
    calls, slices = [], q.split(list(case.tokens))
    for i, rows in enumerate(inputs["rows"]):
        weights = [inputs[name][i] if inputs[name] else None for name in ("q_weight", "k_weight")]
        parts = inputs["qkv"][i * per : (i + 1) * per]
        given = {"rows": rows, "q_out": slices[i], "q_weight": weights[0], "k_weight": weights[1]}
        calls.append(ops.qkv_prep_out(parts, **given, **shared))

    def run() -> None:
        for call in calls:
            call()

    return run


def backward_of(prep: Callable[..., Any], inputs: dict[str, Any]) -> Callable[[], object]:
    """The backward pass of a call, gradients of all but the angles."""
    leaves = replaced(inputs, lambda x: x.detach().requires_grad_())
    found = prep(**leaves | {name: inputs[name] for name in ("cos", "sin")})
    seeds = [torch.ones_like(one) for one in found]
    wanted = flat(leaves)[:-2]
    return lambda: torch.autograd.grad(found, wanted, seeds, retain_graph=True)


def backward_kernel(inputs: dict[str, Any], backend: str) -> Callable[[], object]:
    """What autograd calls, into memory of its own; without gradients of the angles."""
    found = ops.qkv_prep(**inputs, backend=backend)
    lists = ("qkv", "q_weight", "k_weight", "cos", "sin", "rows", "heads", "groups", "eps")
    seeds = (torch.ones_like(one) for one in found)
    given: Any = (*seeds, *(inputs[name] for name in lists), inputs["plus_one"], backend, False)
    return bound_gradients(*given)[1]


def contenders(
    case: Case, inputs: dict[str, Any], backend: str, backward: bool
) -> dict[str, Callable[[], object]]:
    """vlakern's call and torch's, by name."""
    wide = replaced(inputs, lambda x: x.float())
    if not backward:
        return {
            "vlakern": bound(case, inputs, backend),
            "eager": lambda: plain_qkv_prep(**inputs),
            "eager fp32": lambda: plain_qkv_prep(**wide),
        }
    return {
        "vlakern": backward_kernel(inputs, backend),
        "autograd": backward_of(lambda **given: ops.qkv_prep(**given, backend=backend), inputs),
        "eager": backward_of(plain_qkv_prep, inputs),
        "eager fp32": backward_of(plain_qkv_prep, wide),
    }


def rival_compiled(inputs: dict[str, Any], backward: bool) -> Callable[[], object]:
    """torch.compile of the same formula in the case's dtype."""
    plain = torch.compile(plain_qkv_prep)
    return backward_of(plain, inputs) if backward else lambda: plain(**inputs)


def rivals(
    case: Case, inputs: dict[str, Any], backend: str, backward: bool, compiled: bool
) -> dict[str, Callable[[], object]]:
    """The contenders, with torch.compile's where asked for."""
    calls = contenders(case, inputs, backend, backward)
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
            sets = [rivals(case, one, backend, backward, compiled) for one in many]
            timings = interleave_cold({n: [one[n] for one in sets] for n in sets[0]}, repeats)
        else:
            timings = interleave_on(
                device, rivals(case, inputs, backend, backward, compiled), repeats
            )
    timed = timings.pop("vlakern")
    ours = timed.median
    whole = timings.pop("autograd", timed).median
    rival = min(timings, key=lambda name: timings[name].median)
    moved = traffic(case, backward)
    return Row(
        "qkv_prep",
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
def test_qkv_prep(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the traffic beside it."""
    row = measure(case, "cpu", "auto", repeats=20)
    benchmark.extra_info.update(asdict(row))
    benchmark(bound(case, make_inputs(case, generator(str(case))), "auto"))


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
