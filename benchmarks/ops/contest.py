"""An op beside what else computes the same on this machine, each checked before it is timed.

A row says how long the op takes, its operations and bytes per second, which part that is of what
the machine can do, and how many times longer each other contender of ``rivals.py`` takes. The limit
is the larger of two times: that of the op's operations at the peak of the instruction named in
``Entry.peak``, and that of reading and writing as many bytes as the op must, the best of the same
turns (for small ones a part of the time of ``PROBE`` bytes; on a GPU at the bandwidth of a large
copy). What is counted stands in the ``cases.py`` of each op.

Contenders take turns. Before a turn one thread reads more than the caches hold, while everybody's
threads fall asleep; then the contender is called twice, on copies of its operands, and the second
call is timed: its threads are awake and nobody else's are, and its operands come from no cache, as
in a model, where layer follows layer. Since threads of OpenMP that wait actively would hold the
cores beyond that, the program starts itself again with ``OMP_WAIT_POLICY=PASSIVE``. Rates and
ratios are of medians, ``best`` of shortest times.
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
from typing import Any

import numpy as np
import rivals
import torch
from plain import Plain, Run
from rivals import Rival

from vlakern.ops.linear.cases import KIND_BYTES
from vlakern.ops.linear.limits import ColdMemory, peak_rate
from vlakern.testing import Timing, interleave_on
from vlakern.testing.timing import copy_bandwidth, keep_memory

__all__ = ["Entry", "How", "Row", "Run", "compare", "main", "under_pytest"]

CACHES = 64 << 20  # bytes, twice what a last level of cache has here
PROBE = 8 << 20  # bytes, at least, of which the memory's speed is taken

bandwidth = cache(copy_bandwidth)
PEAKS: dict[str, float] = {}  # of one thread


@dataclass(frozen=True)
class How:
    """What the command line asks for.

    Attributes:
        backward: gradients instead of values.
        warm: operands stay in the caches.
    """

    device: str = "cpu"
    backend: str = "auto"
    backward: bool = False
    warm: bool = False
    repeats: int = 20


@dataclass(frozen=True)
class Entry:
    """One case of an op.

    Attributes:
        kind: of the weights or numbers, ``bf16``, ``fp32`` or ``int8``: which rivals take part.
        check: raises AssertionError if the op is wrong on the inputs that are timed.
        ours: by the way of calling, a maker of a call on operands of its own.
        plain: the same in plain PyTorch.
        operations: additions and multiplications that the mathematics needs.
        reads, writes: bytes that it must read and write.
        peak: the kind whose multiplying instruction bounds the operations; ``kind`` if empty.
        others: rivals of this op alone, by name.
    """

    op: str
    case: str
    kind: str
    check: Callable[[], None]
    ours: Mapping[str, Callable[[], Run]]
    plain: Plain
    operations: int
    reads: int
    writes: int
    peak: str = ""
    others: Mapping[str, Rival] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One way of calling one case; rates are of the median.

    Attributes:
        way: of calling the op.
        passes: ``forward``, ``backward`` or ``both``.
        load: of the machine, of the last minute.
        limit: which limit applies, ``memory`` or ``peak``.
        over: how many times longer each other contender takes.
        absent: why a contender has no time.
    """

    op: str
    case: str
    way: str
    passes: str
    device: str
    backend: str
    threads: int
    load: float
    microseconds: float
    best_microseconds: float
    gigabytes_per_second: float
    gigaflops: float
    of_memory: float
    of_peak: float
    limit: str
    of_limit: float
    best_of_limit: float
    over: dict[str, float]
    absent: dict[str, str]
    clock: str


def peak(kind: str) -> float:
    """Operations per second, one thread's best so far times the threads: the cores of a busy
    machine are seldom all free at once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    PEAKS[kind] = max(peak_rate(kind, 30 if kind in PEAKS else 200), PEAKS.get(kind, 0.0))
    torch.set_num_threads(threads)
    return threads * PEAKS[kind]


def in_turns(
    runs: Mapping[str, Run], repeats: int, chill: Callable[[], object]
) -> dict[str, Timing]:
    """Every contender twice in its turn, the second run timed."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            chill()
            run()
            begin = time.perf_counter()
            run()
            if repeat:
                seconds[name].append(time.perf_counter() - begin)
    return {name: Timing(tuple(sorted(times))) for name, times in seconds.items()}


def contenders(
    entry: Entry, names: Sequence[str], how: How
) -> tuple[dict[str, Callable[[], Run]], dict[str, str]]:
    """Makers of the rivals' calls by name, and why the others have none."""
    found: dict[str, Callable[[], Run]] = {}
    absent: dict[str, str] = {}
    chosen = {name: rivals.RIVALS[name] for name in names} | dict(entry.others)
    for name, rival in chosen.items():
        if entry.kind not in rival.kinds or (rival.linear and not entry.plain.has_linear):
            continue
        for variant in entry.plain.modules:
            words = f"{name} {variant}".strip()
            reason = rivals.verdict(rival, entry.plain, variant, how.device)
            if reason:
                absent[words] = reason
            else:
                found[words] = lambda one=rival, v=variant: one.make(entry.plain.task(v))
    return found, absent


def timings(
    entry: Entry, makers: Mapping[str, Callable[[], Run]], how: How
) -> tuple[dict[str, Timing], float]:
    """Times of everybody, and the shortest time [s] for the bytes of the op."""
    if how.device != "cpu":
        calls = {name: make() for name, make in makers.items()}
        on_host = {name for name, one in entry.others.items() if one.on_host}
        floor = (entry.reads + entry.writes) / bandwidth(how.device)
        times = interleave_on(how.device, calls, how.repeats, on_host)
        return times, floor
    count = 1 if how.warm else 2
    runs = {name: turns([make() for _ in range(count)]) for name, make in makers.items()}
    if how.warm:
        return in_turns(runs, how.repeats, lambda: time.sleep(5e-3)), 0.0
    memory, lines = ColdMemory(), np.ones(CACHES // 8)
    times_more = max(1, -(-PROBE // (entry.reads + entry.writes)))
    reads, writes = (times_more * size for size in (entry.reads, entry.writes))
    runs["memory"] = lambda: (memory.read(reads), memory.write(writes))
    times = in_turns(runs, how.repeats, lines.sum)
    return times, times.pop("memory").best / times_more


def turns(calls: Sequence[Run]) -> Run:
    """A call of the next of these."""
    following: Iterator[Run] = cycle(calls)
    return lambda: next(following)()


def compare(entry: Entry, names: Sequence[str] = rivals.QUICK, how: How = How()) -> list[Row]:
    """Checks, then times one case beside the rivals of these names; a row for each way."""
    entry.check()
    others, absent = contenders(entry, names, how)
    passes = entry.plain.passes
    with torch.set_grad_enabled(passes != "forward"):
        times, memory = timings(entry, {**entry.ours, **others}, how)
    threads = torch.get_num_threads()
    fastest = peak(entry.peak or entry.kind) if how.device == "cpu" else 0.0
    arithmetic = entry.operations / fastest if fastest else 0.0
    floor, rows = max(arithmetic, memory), []
    for way in entry.ours:
        ours = times[way]
        rows.append(
            Row(
                entry.op,
                entry.case,
                way,
                passes,
                how.device,
                how.backend,
                threads,
                os.getloadavg()[0],
                ours.median * 1e6,
                ours.best * 1e6,
                (entry.reads + entry.writes) / ours.median / 1e9,
                entry.operations / ours.median / 1e9,
                memory / ours.median,
                arithmetic / ours.median,
                "peak" if arithmetic > memory else "memory",
                floor / ours.median,
                floor / ours.best,
                {name: times[name].median / ours.median for name in others},
                absent,
                ours.clock,
            )
        )
    return rows


HEAD = (
    f"{'us':>8} {'best':>8} {'GF/s':>6} {'GB/s':>5} {'of mem':>6} {'of peak':>7} {'of limit':>14} "
    f"{'best':>5} {'x best':>6} thr  case (how many times longer each other takes)"
)


def line(row: Row) -> str:
    """One row for people; of the reasons for an absence one word."""
    others = [f"{name} {ratio:.2f}" for name, ratio in sorted(row.over.items(), key=lambda o: o[1])]
    others += [f"{name}: {reason.split(':')[0]}" for name, reason in row.absent.items()]
    best = min(row.over.values(), default=float("nan"))
    words = [row.case, row.way * (row.way != "vlakern"), row.backend * (row.backend != "auto")]
    return (
        f"{row.microseconds:8.1f} {row.best_microseconds:8.1f} {row.gigaflops:6.1f} "
        f"{row.gigabytes_per_second:5.1f} {row.of_memory:6.2f} {row.of_peak:7.2f} "
        f"{row.of_limit:7.2f} {row.limit:>6} {row.best_of_limit:5.2f} {best:6.2f} "
        f"{row.threads:>3}  {' '.join(filter(None, words))} ({', '.join(others)})"
    )


def start_passive() -> None:
    """Starts the program again if torch's threads would wait for work on a core."""
    if os.environ.get("OMP_WAIT_POLICY") != "PASSIVE":
        passive = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
        os.execve(sys.executable, [sys.executable, *sys.argv], passive)


def limits(device: str, threads: int) -> str:
    """What the machine can do, in words."""
    if device != "cpu":
        return f"copy {bandwidth(device) / 1e9:.0f} GB/s"
    memory = ColdMemory()
    read, write = (max(one(CACHES) for _ in range(10)) for one in (memory.read, memory.write))
    peaks = ", ".join(f"{kind} {peak(kind) / 1e9:.0f} GFLOP/s" for kind in KIND_BYTES)
    return f"read {read / 1e9:.1f} GB/s, write {write / 1e9:.1f} GB/s, {peaks}, {threads} threads"


def options(description: str, devices: Sequence[str], backward: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="on a CPU")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--cases", action="store_true", help="print the cases' names alone")
    parser.add_argument("--only", nargs="+", default=[""], help="cases whose name has one of these")
    parser.add_argument(
        "--beside", nargs="*", default=list(rivals.QUICK), choices=rivals.RIVALS, help="the others"
    )
    parser.add_argument("--compiled", action="store_true", help="torch.compile, slow to start, too")
    parser.add_argument("--warm", action="store_true", help="operands stay in the caches")
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    parser.add_argument("--device", default="cpu", choices=devices)
    parser.add_argument("--backend", nargs="+", default=["auto"])
    if backward:
        parser.add_argument("--backward", action="store_true", help="gradients instead")
    return parser


def main(
    description: str,
    cases: Sequence[tuple[str, Callable[[How], Entry]]],
    devices: Sequence[str] = ("cpu",),
    backward: bool = False,
) -> None:
    """The command line of an op's benchmark; ``cases`` are names and makers."""
    start_passive()
    args = options(description, devices, backward).parse_args()
    chosen = [(name, make) for name, make in cases if any(part in name for part in args.only)]
    if args.cases:
        print("\n".join(name for name, _ in chosen))
        return
    keep_memory()
    names = [*args.beside, *[rivals.COMPILED] * args.compiled]
    for threads in args.threads if args.device == "cpu" else args.threads[:1]:
        torch.set_num_threads(threads)
        print(f"{limits(args.device, threads)}\n{HEAD}")
        for _, make in chosen:
            for backend in args.backend:
                gradients = backward and args.backward
                how = How(args.device, backend, gradients, args.warm, args.repeats)
                for row in compare(make(how), names, how):
                    print(line(row), flush=True)
                    if args.json:
                        with args.json.open("a") as file:
                            file.write(json.dumps(asdict(row)) + "\n")


def under_pytest(benchmark: Any, make: Callable[[How], Entry]) -> None:
    """One row of pytest-benchmark's table, with the contest's beside it."""
    how = How(repeats=5)
    entry = make(how)
    benchmark.extra_info.update(asdict(compare(entry, rivals.QUICK[:2], how)[0]))
    benchmark(next(iter(entry.ours.values()))())
