"""An op beside what else computes the same layer on a CPU, each checked before its time is printed.

Weights come from no cache: before a copy of them is used again, the contenders have read 192
MiB and more. Every contender is run twice in its turn and the second run is timed: as in a model,
where the op before was one's own, its threads are awake and nobody else's are. Since threads of
OpenMP that wait actively would hold the cores beyond that, the program starts itself again with
``OMP_WAIT_POLICY=PASSIVE``. Fractions and ratios are of medians, ``best`` of shortest times.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import cycle
from pathlib import Path

import rivals
import torch
from rivals import Rival, Run
from torch import Tensor, nn

from vlakern.ops.linear.cases import KIND_BYTES
from vlakern.ops.linear.limits import ROOM, ColdMemory, peak_rate
from vlakern.testing import Timing

__all__ = ["Layer", "Row", "compare", "main"]

# So many passes that on a busy machine some have every core to themselves.
peak = cache(lambda kind, threads: peak_rate(kind, passes=300))


@dataclass(frozen=True)
class Layer:
    """One case of an op.

    Attributes:
        kind: of the weights, ``bf16``, ``fp32`` or ``int8``.
        check: raises AssertionError if the op is wrong on the inputs that are timed.
        ours: makes a bound call on a copy of the weights.
        module: the same in plain PyTorch, fp32, of ``inputs``.
        weights: numbers in them.
        operations: additions and multiplications.
        moved: bytes that the mathematics must move.
    """

    op: str
    case: str
    kind: str
    check: Callable[[], None]
    ours: Callable[[], Run]
    module: nn.Module
    inputs: tuple[Tensor, ...]
    weights: int
    operations: int
    moved: int


@dataclass(frozen=True)
class Row:
    """One case; rates are of the median, ``best_`` ones of the shortest time.

    Attributes:
        limit: which limit applies, ``memory`` or ``peak``.
        over: how many times longer each other contender takes.
        absent: why a contender has no time.
    """

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
    limit: str
    of_limit: float
    best_of_limit: float
    over: dict[str, float]
    absent: dict[str, str] = field(default_factory=dict)


def in_turns(runs: Mapping[str, Run], repeats: int) -> dict[str, Timing]:
    """Every contender twice in its turn, the second run timed."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            run()
            begin = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return {name: Timing(tuple(sorted(times))) for name, times in seconds.items()}


def copies(make: Callable[[], Run], count: int) -> Run:
    """A call that runs the next of ``count`` contenders."""
    turns: Iterator[Run] = cycle([make() for _ in range(count)])
    return lambda: next(turns)()


def compare(layer: Layer, names: Sequence[str], repeats: int, memory: ColdMemory) -> Row:
    """Checks, then times one case beside the rivals of these names."""
    layer.check()
    threads = torch.get_num_threads()
    exact = rivals.exact(layer.module, layer.inputs)
    rows: dict[str, Rival] = {}
    absent: dict[str, str] = {}
    for name in names:
        rival = rivals.RIVALS[name]
        if layer.kind in rival.kinds:
            reason = rivals.verdict(rival, layer.module, layer.inputs, exact)
            rows |= {} if reason else {name: rival}
            absent |= {name: reason} if reason else {}
    round_bytes = layer.moved + layer.weights * KIND_BYTES[layer.kind]
    round_bytes += layer.weights * sum(rival.bytes_each for rival in rows.values())
    count = max(2, -(-ROOM // (2 * round_bytes)))
    runs = {"vlakern": copies(layer.ours, count)}
    for name, rival in rows.items():
        runs[name] = copies(lambda one=rival: one.make(layer.module, layer.inputs), count)
    runs["read"] = lambda: memory.read(layer.moved)
    with torch.no_grad():
        times = in_turns(runs, repeats)
    ours, read = times.pop("vlakern"), times.pop("read")
    fastest = peak(layer.kind, threads)
    arithmetic = layer.operations / fastest if fastest else 0.0
    return Row(
        layer.op,
        layer.case,
        threads,
        os.getloadavg()[0],
        ours.median * 1e6,
        ours.best * 1e6,
        layer.moved / ours.median / 1e9,
        layer.operations / ours.median / 1e9,
        read.median / ours.median,
        read.best / ours.best,
        arithmetic / ours.median,
        arithmetic / ours.best,
        "peak" if arithmetic > read.median else "memory",
        max(arithmetic, read.median) / ours.median,
        max(arithmetic, read.best) / ours.best,
        {name: one.median / ours.median for name, one in times.items()},
        absent,
    )


HEAD = (
    f"{'us':>8} {'GF/s':>6} {'GB/s':>5} {'of bw':>5} {'best':>5} {'of peak':>7} {'best':>5} "
    f"{'of limit':>14} {'x best':>6} thr  case (how many times longer each other takes)"
)


def line(row: Row) -> str:
    """One row for people."""
    others = [f"{name} {ratio:.2f}" for name, ratio in sorted(row.over.items(), key=lambda o: o[1])]
    others += [f"{name}: {reason}" for name, reason in row.absent.items()]
    best = min(row.over.values(), default=float("nan"))
    return (
        f"{row.microseconds:8.0f} {row.gigaflops:6.0f} {row.gigabytes_per_second:5.1f} "
        f"{row.of_bandwidth:5.2f} {row.best_of_bandwidth:5.2f} {row.of_peak:7.2f} "
        f"{row.best_of_peak:5.2f} {row.of_limit:7.2f} {row.limit:>6} {best:6.2f} "
        f"{row.threads:>3}  {row.case} ({', '.join(others)})"
    )


def start_passive() -> None:
    """Starts the program again if torch's threads would wait for work on a core."""
    if os.environ.get("OMP_WAIT_POLICY") != "PASSIVE":
        passive = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        os.execve(sys.executable, [sys.executable, *sys.argv], passive)


def main(description: str, layers: Sequence[tuple[str, Callable[[], Layer]]]) -> None:
    """The command line of an op's benchmark; ``layers`` are names of cases and makers."""
    start_passive()
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--only", nargs="+", default=[""], help="cases whose name holds one of these"
    )
    parser.add_argument(
        "--beside", nargs="*", default=list(rivals.QUICK), choices=rivals.RIVALS, help="the others"
    )
    parser.add_argument("--compiled", action="store_true", help="torch.compile, slow to start, too")
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    args = parser.parse_args()
    names = [*args.beside, *["torch.compile frozen bf16"] * args.compiled]
    for threads in args.threads:
        torch.set_num_threads(threads)
        memory = ColdMemory()
        best = max(memory.read(64 << 20) for _ in range(10))
        peaks = ", ".join(f"{kind} {peak(kind, threads) / 1e9:.0f} GFLOP/s" for kind in KIND_BYTES)
        print(f"read {best / 1e9:.1f} GB/s, {peaks}, {threads} threads\n{HEAD}")
        for case, make in layers:
            if not any(part in case for part in args.only):
                continue
            row = compare(make(), names, args.repeats, memory)
            print(line(row), flush=True)
            if args.json:
                with args.json.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
