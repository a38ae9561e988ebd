"""``vlakern bench``: latency per stage, how far it is from the limit, and from other forms."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.markup import escape
from rich.table import Table

import vlakern
from vlakern.cli._common import Progress, check_json, check_writable, console, machine, write_report
from vlakern.errors import InputError

if TYPE_CHECKING:
    from vlakern.bench.latency import BenchConfig, BenchResult, VariantResult
    from vlakern.bench.machine import Limits

__all__ = ["Args", "run"]


@dataclass
class Args:
    """Measure latency per stage, with the physical limit and other forms beside it."""

    preset: str | None = None
    """A model with random weights: rethink-2b (default), rethink-2b-wide, pi0, pi05,
    smolvla, metaworld-small, tiny, ..."""
    policy: str | None = None
    """A policy directory, or the name of a policy that ships, instead of a preset."""
    views: int | None = None
    """Camera images per observation; 2, or what the policy has if that is less."""
    prompt_tokens: int = 67
    """Tokens of the instruction; 67 gives rethink-2b with 2 views a prefix of 220 tokens."""
    chunk: int | None = None
    """Actions per prediction; the model's by default."""
    steps: int | None = None
    """ODE steps; the model's by default."""
    batch: int = 1
    """Observations per call."""
    candidates: int = 1
    """Action chunks per observation, from one shared prefix."""
    dtype: Literal["bf16", "fp32", "int8", "fp8"] = "bf16"
    """Number format of the large products; fp8 on GPUs of sm_89 and newer."""
    device: str = "auto"
    """Device: auto, cpu, cuda."""
    backend: Literal["auto", "native", "torch", "graph", "cuda"] = "auto"
    """What runs vlakern's stages: the CPU engine, the GPU's (graph; cuda integrates in one kernel),
    or the network's modules."""
    runs: int = 100
    """Calls of each variant that count, after two that do not."""
    threads: int | None = None
    """CPU threads; torch's number by default."""
    against: str = ""
    """Variants to compare with, separated by commas, each in turn with vlakern: torch-eager,
    torch-compile, torch-frozen, torch-flash, uncached, openvino, onnxruntime, vlakern-int8, ..."""
    cold: bool = True
    """Measure cold start and peak memory in a fresh process."""
    seed: int = 0
    """Of the weights, images, words and noise."""
    machine: bool = False
    """Measure only what this machine can do at most."""
    loop: bool = False
    """Measure only the control loop: lateness of the native thread beside a busy interpreter and an
    inference, what a stall does, and what the way to a server costs."""
    seconds: float | None = None
    """Of --loop: length of each of its two runs [s]; 20."""
    json: Path | None = None
    """File for the results as JSON."""
    plot: Path | None = None
    """PNG file for a histogram of latency and the stages as bars."""


def run(args: Args) -> int:
    """Measures, prints the tables and returns 0."""
    _check(args)
    if args.machine:
        return _machine(args)
    if args.loop:
        return _loop(args)
    from vlakern.bench.latency import run as measure

    config = _config(args)
    with Progress(_stops(config), "bench") as bar:
        result = measure(config, lambda what: bar.update(1, what, at_once=True))
    _show(result)
    if args.plot is not None:
        from vlakern.bench.report import write_plot

        write_plot(args.plot, result)
        print(f"plot: {args.plot}")
    if args.json is not None:
        write_report(args.json, result.settings, result.payload())
    return 0


def _check(args: Args) -> None:
    if args.preset is not None and args.policy is not None:
        raise InputError(f"found --preset {args.preset} and --policy {args.policy}; name one")
    if args.seconds is not None and not args.loop:
        raise InputError("--seconds is the length of --loop's runs; say --loop, or leave it out")
    check_json(args.json)
    if args.plot is not None:
        if args.plot.suffix != ".png":
            raise InputError(f"--plot {args.plot} does not end in .png; a PNG file is written")
        check_writable(args.plot)
        from vlakern.drawing import check_drawing

        check_drawing()


def _config(args: Args) -> "BenchConfig":
    from vlakern.bench.latency import BenchConfig

    preset = args.preset or (None if args.policy else "rethink-2b")
    return BenchConfig(
        preset=preset,
        policy=args.policy,
        views=args.views,
        prompt_tokens=args.prompt_tokens,
        chunk=args.chunk,
        steps=args.steps,
        batch=args.batch,
        candidates=args.candidates,
        dtype=args.dtype,
        device=_device(args.device),
        backend=args.backend,
        runs=args.runs,
        threads=args.threads,
        against=tuple(name for name in args.against.split(",") if name),
        cold=args.cold,
        seed=args.seed,
    )


def _device(name: str) -> str:
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _stops(config: "BenchConfig") -> int:
    """How often ``run`` says what begins."""
    pairs = len(config.against)
    return 4 + 2 * pairs + (pairs == 0) + config.cold


def _loop(args: Args) -> int:
    from dataclasses import asdict

    from vlakern.bench.loop import bench_loop

    seconds = 20.0 if args.seconds is None else args.seconds
    with Progress(4, "loop") as bar:
        found = bench_loop(
            args.policy or "metaworld-small",
            seconds,
            say=lambda what: bar.update(1, what, at_once=True),
        )
    table = Table(
        title=f"lateness at {found.rate:g} Hz, {seconds:g} s each [ms]", title_justify="left"
    )
    table.add_column("thread")
    for name in ("ticks", "missed", *found.native_idle.late_ms):
        table.add_column(name, justify="right")
    rows = {
        "native, alone": found.native_idle,
        "native, busy": found.native_busy,
        "Python, alone": found.python_idle,
        "Python, busy": found.python_busy,
    }
    for name, thread in rows.items():
        late = [f"{value:.3f}" for value in thread.late_ms.values()]
        table.add_row(name, str(thread.ticks), str(thread.missed), *late)
    out = console()
    out.print(table)
    out.print(
        f"busy: {found.busy} Python threads and {found.calls} inferences; the native p99.9 grows by"
        f" {found.growth_ms:.3f} ms\na stall of 200 ms: {found.stall_missed} ticks skipped,"
        f" {found.stall_bursts} in a burst",
        soft_wrap=True,
    )
    for way, times in found.overhead.items():
        out.print(
            f"{way}: p50 {times['p50_ms']:.2f} ms, p99 {times['p99_ms']:.2f} ms over the call"
        )
    for sentence in found.statements:
        out.print(escape(sentence), soft_wrap=True)
    if args.json is not None:
        write_report(args.json, args, {"loop": {**asdict(found), "growth_ms": found.growth_ms}})
    return 0


def _machine(args: Args) -> int:
    import torch

    from vlakern.bench.machine import measure

    if args.threads is not None:
        if args.threads < 1:
            raise InputError(f"--threads is {args.threads}, expected at least 1")
        torch.set_num_threads(args.threads)
    device = _device(args.device)
    limits = measure(("fp32", "bf16", "int8"), device)
    out = console()
    out.print(_limits_table(limits))
    out.print(escape(limits.how), soft_wrap=True)
    if args.json is not None:
        settings = {"device": device, "threads": torch.get_num_threads()}
        write_report(args.json, settings, {"limits": vars(limits)})
    return 0


def _limits_table(limits: "Limits") -> Table:
    table = Table(title="limits of this machine", title_justify="left")
    table.add_column("what")
    table.add_column("limit", justify="right", no_wrap=True)
    table.add_row("memory", f"{limits.bandwidth / 1e9:.1f} GB/s")
    for name, peak in limits.peaks.items():
        table.add_row(name, f"{peak / 1e9:.0f} GFLOP/s" if peak else "not known")
    return table


def _show(result: "BenchResult") -> None:
    out = console()
    for name, one in result.variants.items():
        out.print(_stage_table(name, one))
        out.print(_notes(one), soft_wrap=True)
    if result.ratios:
        out.print(_ratio_table(result))
    if result.limits is not None:
        peaks = [f"{name} {peak / 1e9:.0f} GFLOP/s" for name, peak in result.limits.peaks.items()]
        roofs = ", ".join([f"memory {result.limits.bandwidth / 1e9:.1f} GB/s", *peaks])
        drift = f"before and after, {100 * result.limits.drift:.1f} % apart"
        out.print(f"limits: {roofs} ({result.limits.how}; {drift})", soft_wrap=True)
    if any(_beats_its_floor(one) for one in result.variants.values()):
        words = "a stage took less than its floor: the limits were measured while other work ran"
        out.print(f"[yellow]{words}; floors and shares above are wrong[/]", soft_wrap=True)
    facts = machine()
    versions = {"vlakern": vlakern.__version__, "torch": facts.get("torch", "-")}
    words = {**result.settings, **versions, "cpu": facts["cpu"]}
    out.print(escape(", ".join(f"{key} {value}" for key, value in words.items())), soft_wrap=True)


def _stage_table(name: str, one: "VariantResult") -> Table:
    table = Table(title=escape(f"{name} [ms]"), title_justify="left")
    table.add_column("stage", no_wrap=True)
    for column in ("p50", "p95", "p99", "max", "p99-p50", "floor", "of floor"):
        table.add_column(column, justify="right", no_wrap=True)
    for stage, times in one.stages.items():
        if stage == "total":
            table.add_section()
        floor, share = "-", "-"
        if times.floor_ms is not None:
            floor, share = _ms(times.floor_ms), f"{100 * times.floor_ms / times.p50_ms:.0f} %"
        shown = (times.p50_ms, times.p95_ms, times.p99_ms, times.max_ms)
        spread = times.p99_ms - times.p50_ms
        table.add_row(stage, *map(_ms, (*shown, spread)), floor, share)
    return table


def _beats_its_floor(one: "VariantResult") -> bool:
    """By more than what best and median may differ by."""
    return any(t.floor_ms is not None and t.floor_ms > 1.02 * t.p50_ms for t in one.stages.values())


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _notes(one: "VariantResult") -> str:
    """What stands below a table: spread, error, cold start and memory."""
    total = one.stages["total"]
    runs = len(one.samples_ms["total"])
    spread = 100 * (total.p99_ms - total.p50_ms) / total.p50_ms
    cold = "not measured" if one.cold_start_s is None else f"{one.cold_start_s:.2f} s"
    memory = "not measured"
    if one.peak_memory_bytes is not None:
        memory = f"{one.peak_memory_bytes / 1e9:.2f} GB"
        if one.weights_bytes:
            memory += f" ({one.peak_memory_bytes / one.weights_bytes:.2f}x the weights)"
    return (
        f"{runs} calls, p99-p50 is {spread:.1f} % of p50; error against fp32 {one.error:.1e};"
        f" cold start {cold}; peak memory {memory}"
    )


def _ratio_table(result: "BenchResult") -> Table:
    main = next(iter(result.variants))
    table = Table(title=f"times the p50 of {main}, measured in turn", title_justify="left")
    table.add_column("variant")
    stages = ("vision", "prefix", "ode", "total")
    for stage in stages:
        table.add_column(stage, justify="right", no_wrap=True)
    for name, ratio in result.ratios.items():
        table.add_row(name, *(f"{ratio[one]:.2f}" if one in ratio else "-" for one in stages))
    return table
