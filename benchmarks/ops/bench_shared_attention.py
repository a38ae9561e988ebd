"""Speed of shared_attention, bound as an engine calls it; nothing is printed while it is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_shared_attention.py [--threads 1 2] [--only
NAME] [--compile] [--backward] [--json FILE]``. Under pytest-benchmark: ``pytest
benchmarks/ops/bench_shared_attention.py``.

Contenders take turns. Each turn begins with calls that are not counted, until the contender's
threads are awake and those of the one before sleep; every call takes the next of so many copies of
the cached and own keys and values that no cache holds them, as layer follows layer in a model
(``--warm``: the same ones again). ``vlakern`` reads keys and values as ``[P, G, D]``,
``head-major`` as a view of ``[G, P, D]``, ``packed`` has the prefix packed before. Baselines have
tensors that were laid out for them before the clock starts, ``[documents, heads, tokens, D]``,
which a model would have to gather: scaled_dot_product_attention with key-value heads expanded and
with enable_gqa, and matmul, softmax, matmul with the queries that share a head as rows of one
matrix, in bf16 and in fp32, masked and, where every query sees everything, unmasked, and with
``--compile`` the last through inductor. Ratios of medians: to the fastest
scaled_dot_product_attention and to the fastest of all.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from shared_attention_baselines import backwards, baselines, copies_of, plain_attention, traffic

from vlakern import ops
from vlakern.errors import Unsupported
from vlakern.ops.linear.limits import ColdMemory, peak_rate
from vlakern.ops.shared_attention.cases import BENCH, Case, Inputs, make
from vlakern.ops.shared_attention.reference import shared_attention_reference
from vlakern.testing import Timing, assert_accurate, generator

BF16 = torch.bfloat16
KINDS = {BF16: "bf16", torch.float32: "fp32"}
Run = Callable[[], object]
OURS = ("vlakern", "head-major", "packed", "backward")


@dataclass(frozen=True)
class Row:
    """One case; rates are of the median."""

    op: str
    case: str
    backend: str
    dtype: str
    threads: int
    microseconds: float
    best_microseconds: float
    gflops_per_second: float
    gigabytes_per_second: float
    of_limit: float
    best_of_limit: float
    baseline: str
    over_sdpa: float
    over: float
    all_microseconds: dict[str, float]


def take_turns(
    contenders: Mapping[str, Run], repeats: int, awake: float = 15e-3
) -> dict[str, Timing]:
    """Times [s] of single calls: each contender runs ``awake`` [s] uncounted, then three calls."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            end = time.perf_counter() + awake
            while time.perf_counter() < end:
                run()
            for _ in range(3):
                begin = time.perf_counter()
                run()
                seconds[name].append(time.perf_counter() - begin)
    return {name: Timing(tuple(sorted(times))) for name, times in seconds.items()}


@cache
def limits(dtype: torch.dtype, threads: int) -> tuple[float, float]:
    """Operations and bytes per second that the machine reaches in registers and from memory."""
    torch.set_num_threads(threads)
    memory = ColdMemory()
    return peak_rate(KINDS[dtype], 300), max(memory.read(64 << 20) for _ in range(10))


def arguments(given: Inputs) -> tuple[Any, ...]:
    return (
        given.q_THD,
        given.k_SGD,
        given.v_SGD,
        given.who,
        given.prefix_k_PGD,
        given.prefix_v_PGD,
    )


def bound(given: Inputs, backend: str, packed: bool = False) -> Run:
    """The timed call, into memory of its own."""
    out, lse = torch.empty_like(given.q_THD), torch.empty(given.q_THD.shape[:2])
    once = None
    if packed and given.prefix_k_PGD is not None and given.prefix_v_PGD is not None:
        once = ops.shared_attention_pack_prefix(given.prefix_k_PGD, given.prefix_v_PGD, given.who)
    return ops.shared_attention_out(
        *arguments(given), out=out, lse=lse, packed=once, backend=backend
    )


def check(case: Case, given: Inputs, backend: str) -> None:
    """Raises AssertionError if the op is wrong on the very inputs that are timed."""
    found, _ = ops.shared_attention(*arguments(given), backend=backend)
    wide: list[Any] = [x.double() if isinstance(x, torch.Tensor) else x for x in arguments(given)]
    exact, _ = shared_attention_reference(*wide)
    assert_accurate(found, exact, plain_attention(case, given), str(case))


def forwards(case: Case, given: Inputs, backend: str, warm: bool) -> dict[str, Run]:
    """The op with the layouts that it takes."""
    found = {
        "vlakern": copies_of(given, lambda one: bound(one, backend), warm),
        "head-major": copies_of(given, lambda one: bound(one, backend), warm, head_major=True),
    }
    if case.index and backend in ("auto", "cpu"):
        with contextlib.suppress(Unsupported):
            found["packed"] = copies_of(given, lambda one: bound(one, backend, True), warm)
    return found


def measure(case: Case, dtype: torch.dtype, threads: int, args: argparse.Namespace) -> list[Row]:
    """Checks, then times one case against every baseline."""
    given = make(case, generator(str(case)), dtype)
    torch.set_num_threads(threads)
    check(case, given, args.backend)
    if args.backward:
        runs = backwards(case, given, args.backend)
    else:
        runs = forwards(case, given, args.backend, args.warm)
        runs |= baselines(case, given, args.warm, args.compile)
    times = take_turns(runs, args.repeats)
    ours = {name: times.pop(name) for name in OURS if name in times}
    best = min(times, key=lambda name: times[name].median)
    sdpa = [one.median for name, one in times.items() if "expanded" in name or "gqa" in name]
    peak, bandwidth = limits(dtype, threads)
    operations = (10 if args.backward else 4) * case.pairs * case.heads * case.head_dim
    moved = traffic(given, args.backward)
    limit = max(operations / peak if peak else 0.0, 0.0 if args.warm else moved / bandwidth)
    everything = {name: one.median * 1e6 for name, one in {**ours, **times}.items()}
    return [
        Row(
            f"shared_attention {name}",
            str(case),
            args.backend,
            str(dtype).removeprefix("torch."),
            threads,
            one.median * 1e6,
            one.best * 1e6,
            operations / one.median / 1e9,
            moved / one.median / 1e9,
            limit / one.median,
            limit / one.best,
            best,
            min(sdpa) / one.median,
            times[best].median / one.median,
            everything,
        )
        for name, one in ours.items()
    ]


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16"], choices=("bfloat16", "float32"))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--only", nargs="+", default=[""], help="cases whose name holds one of these"
    )
    parser.add_argument("--warm", action="store_true", help="keys and values stay in the caches")
    parser.add_argument("--compile", action="store_true", help="inductor's baselines too")
    parser.add_argument("--backward", action="store_true", help="gradients instead")
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    return parser


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_shared_attention(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the ratio beside it."""
    args = options().parse_args(["--repeats", "3"])
    row = measure(case, BF16, torch.get_num_threads(), args)[0]
    benchmark.extra_info.update(asdict(row))
    benchmark(bound(make(case, generator(str(case)), BF16), "auto"))


def main() -> None:
    args = options().parse_args()
    for name in args.dtype:
        for threads in args.threads:
            peak, bandwidth = limits(getattr(torch, name), threads)
            print(
                f"{name}, {threads} threads: {peak / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s"
            )
    print(
        f"{'us':>8} {'best':>8} {'GF/s':>6} {'GB/s':>5} {'of limit':>8} {'best':>5}"
        f" {'x sdpa':>6} {'x any':>6}  thr dtype    way         case (fastest of torch)"
    )
    for case in (case for case in BENCH if any(part in str(case) for part in args.only)):
        for name in args.dtype:
            for threads in args.threads:
                for row in measure(case, getattr(torch, name), threads, args):
                    print(
                        f"{row.microseconds:8.1f} {row.best_microseconds:8.1f}"
                        f" {row.gflops_per_second:6.1f} {row.gigabytes_per_second:5.1f}"
                        f" {row.of_limit:8.2f} {row.best_of_limit:5.2f}"
                        f" {row.over_sdpa:6.2f} {row.over:6.2f}  {threads:<3} {name:<8}"
                        f" {row.op.split()[1]:<11} {case} ({row.baseline},"
                        f" {row.all_microseconds[row.baseline]:.0f} us)",
                        flush=True,
                    )
                    if args.json:
                        with args.json.open("a") as file:
                            file.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
