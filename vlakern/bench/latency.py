"""Latency per stage, of variants side by side in one run."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch

from vlakern.bench import child
from vlakern.bench.accuracy import Reference, check, reference
from vlakern.bench.contenders import Contender, Place, Variant, make, variant_of
from vlakern.bench.machine import Limits, measure
from vlakern.bench.roofline import floors_ms
from vlakern.bench.workload import PROMPT_TOKENS, PolicySource, PresetSource, Source, Workload
from vlakern.errors import InputError, Unsupported
from vlakern.ops import _native
from vlakern.testing.timing import clock_of

__all__ = ["BenchConfig", "BenchResult", "StageTimes", "VariantResult", "run", "workload"]

STAGES = ("preprocess", "vision", "prefix", "ode", "postprocess")
WARM_UP = 2  # calls of each variant that are not counted
MOST = {"views": 64, "batch": 4096, "candidates": 4096, "chunk": 4096, "steps": 1000}


@dataclass(frozen=True)
class BenchConfig:
    """What is measured; see ``vlakern bench --help`` for each field."""

    preset: str | None = "rethink-2b"
    policy: str | None = None
    views: int | None = None
    prompt_tokens: int = PROMPT_TOKENS
    chunk: int | None = None
    steps: int | None = None
    batch: int = 1
    candidates: int = 1
    dtype: str = "bf16"
    device: str = "cpu"
    backend: Literal["auto", "native", "torch", "graph", "cuda"] = "auto"
    runs: int = 100
    threads: int | None = None
    against: tuple[str, ...] = ()
    cold: bool = True
    seed: int = 0


@dataclass(frozen=True)
class StageTimes:
    """One stage's wall times [ms]; percentiles interpolate linearly."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    min_ms: float
    floor_ms: float | None


@dataclass(frozen=True)
class VariantResult:
    """One variant.

    Attributes:
        stages: by name, with ``total``.
        samples_ms: every counted call's times.
        error: of its actions, relative to fp32.
        cold_start_s: from import to the first actions; None if it was not measured.
        peak_memory_bytes: the largest resident memory of a process that does nothing else: Python,
            libraries, the weights that are mapped and touched, buffers; None if not measured.
        weights_bytes: of them, known for vlakern's engine on the CPU.
    """

    stages: dict[str, StageTimes]
    samples_ms: dict[str, list[float]]
    error: float
    cold_start_s: float | None = None
    peak_memory_bytes: int | None = None
    weights_bytes: int | None = None


@dataclass(frozen=True)
class BenchResult:
    """The first variant is vlakern's; ``ratios`` are each other one's p50 over its.

    ``limits`` are the best of before and after everything was timed.
    """

    settings: dict[str, Any]
    variants: dict[str, VariantResult]
    ratios: dict[str, dict[str, float]]
    limits: Limits | None

    def payload(self) -> dict[str, Any]:
        """The verb's part of the JSON report."""
        shown = {
            name: {
                "stages": {stage: vars(times) for stage, times in one.stages.items()},
                "cold_start_s": one.cold_start_s,
                "peak_memory_bytes": one.peak_memory_bytes,
            }
            for name, one in self.variants.items()
        }
        limits = None if self.limits is None else vars(self.limits)
        return {"variants": shown, "ratios": self.ratios, "limits": limits}


@dataclass
class _Samples:
    """Times of one variant, stage by stage."""

    error: float = 0.0
    stages: dict[str, list[float]] = field(default_factory=dict)

    def add(self, times: dict[str, float]) -> None:
        for stage, seconds in times.items():
            self.stages.setdefault(stage, []).append(seconds * 1e3)


def run(config: BenchConfig, seen: Callable[[str], None] = lambda what: None) -> BenchResult:
    """Measures.

    Args:
        seen: is told what begins.

    Raises:
        InputError, ConfigError: a number, preset or variant that there is not.
        CheckpointError: the policy cannot be read.
        Unsupported: the device or dtype is not there.
    """
    first, others = _variants(config)
    threads = config.threads or torch.get_num_threads()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _run(config, first, others, Place(config.device, config.backend, threads), seen)
    finally:
        torch.set_num_threads(before)


def workload(config: BenchConfig) -> Workload:
    """The calls that a configuration stands for.

    Raises:
        InputError: naming the option that does not fit.
    """
    for name in ("prompt_tokens", "batch", "candidates", "runs"):
        _at_least_one(name, getattr(config, name))
    source = _source(config)
    views = min(2, source.most_views) if config.views is None else config.views
    if not 1 <= views <= source.most_views:
        raise InputError(f"--views is {views}, expected 1 to {source.most_views}")
    for name, most in MOST.items():
        value = getattr(config, name)
        if name != "views" and value is not None and not 1 <= value <= most:
            raise InputError(f"--{name} is {value}, expected 1 to {most}")
    return Workload(
        source,
        views=views,
        prompt_tokens=config.prompt_tokens,
        chunk=config.chunk,
        steps=config.steps,
        batch=config.batch,
        candidates=config.candidates,
        seed=config.seed,
    )


def _source(config: BenchConfig) -> Source:
    if config.policy is not None:
        return PolicySource(config.policy)
    if config.preset is None:
        raise InputError("nothing to measure: name a --preset or a --policy")
    return PresetSource(config.preset, config.seed)


def _at_least_one(name: str, value: int) -> None:
    if value < 1:
        raise InputError(f"--{name.replace('_', '-')} is {value}, expected at least 1")


def _variants(config: BenchConfig) -> tuple[Variant, list[Variant]]:
    kind, _, index = config.device.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise Unsupported(f"--device {config.device} is not known; use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise Unsupported(f"--device {config.device} is not there; torch sees {found} NVIDIA GPUs")
    if config.threads is not None:
        _at_least_one("threads", config.threads)
    first = variant_of(f"vlakern-{config.dtype}")
    others = [variant_of(name) for name in dict.fromkeys(config.against)]
    for one in (first, *others):
        if one.dtype == "fp8" and kind == "cpu":
            raise Unsupported(f"{one.name} needs an NVIDIA GPU of sm_89 or newer; use int8 here")
    return first, [one for one in others if one != first]


def _run(
    config: BenchConfig,
    first: Variant,
    others: Sequence[Variant],
    place: Place,
    seen: Callable[[str], None],
) -> BenchResult:
    work = workload(config)
    limits = _limits([first, *others], place, seen)
    seen("reference")
    known = reference(work)
    samples = {one.name: _Samples() for one in (first, *others)}
    ratios: dict[str, dict[str, float]] = {}
    seen(f"load {first.name}")
    main = _checked(first, work, place, known, samples)
    if not others:
        seen(f"time {first.name}")
        _interleave({first.name: main}, work, config, samples)
    for other in others:
        seen(f"load {other.name}" + ", which compiles for minutes" * other.compiles)
        pair = {first.name: main, other.name: _checked(other, work, place, known, samples)}
        seen(f"time {first.name} and {other.name}")
        begin = len(samples[first.name].stages.get("total", ()))
        _interleave(pair, work, config, samples)
        ratios[other.name] = _ratios(other, samples[other.name], samples[first.name], begin)
        del pair
        gc.collect()
    del main
    gc.collect()
    later = _limits([first, *others], place, seen)
    if limits is not None and later is not None:
        limits = limits.joined(later)
    results = {one.name: _result(samples[one.name], one, work, limits) for one in (first, *others)}
    if config.cold:
        seen("cold start")
        results[first.name] = replace(results[first.name], **vars(child.measure(config)))
    return BenchResult(_settings(config, work, place), results, ratios, limits)


def _limits(
    variants: Sequence[Variant], place: Place, seen: Callable[[str], None]
) -> Limits | None:
    if place.device == "cpu" and _native.missing() is not None:
        return None
    seen("machine")
    return measure(sorted({one.dtype for one in variants}), place.device)


def _checked(
    variant: Variant, work: Workload, place: Place, known: Reference, samples: dict[str, _Samples]
) -> Contender:
    contender = make(variant, work, place)
    samples[variant.name].error = check(variant, contender, work, known)
    return contender


def _interleave(
    contenders: dict[str, Contender],
    work: Workload,
    config: BenchConfig,
    samples: dict[str, _Samples],
) -> None:
    """Every call by every contender in turn, so that what else runs here hits all alike."""
    clock = clock_of(config.device)
    for index in range(WARM_UP + config.runs):
        for name, contender in contenders.items():
            times = timed(contender, work, index, clock)
            if index >= WARM_UP:
                samples[name].add(times)


def timed(
    contender: Contender, work: Workload, index: int, clock: Callable[[], float]
) -> dict[str, float]:
    """One call from camera images and words to the robot's numbers: seconds of each stage."""
    times, begin = {}, clock()
    call = work.call(index)
    contender.prepare(work)
    times["preprocess"] = clock()
    contender.vision()
    times["vision"] = clock()
    contender.prefix(call)
    times["prefix"] = clock()
    x_NHA = contender.ode(call)
    times["ode"] = clock()
    work.actions(x_NHA)
    times["postprocess"] = clock()
    ends = [begin, *times.values()]
    spent = {name: ends[i + 1] - ends[i] for i, name in enumerate(times)}
    return {**spent, "total": ends[-1] - begin}


def _ratios(variant: Variant, other: _Samples, first: _Samples, begin: int) -> dict[str, float]:
    """Medians of the calls that ran in turn, from ``begin`` on for the first."""
    return {
        stage: float(np.median(times) / np.median(first.stages[stage][begin:]))
        for stage, times in other.stages.items()
        if _comparable(variant, stage)
    }


def _comparable(variant: Variant, stage: str) -> bool:
    """Whole documents at every step make the prefix a part of the ODE."""
    return variant.staged or stage not in ("prefix", "ode")


def _result(
    samples: _Samples, variant: Variant, work: Workload, limits: Limits | None
) -> VariantResult:
    floors: dict[str, float] = {}
    if limits is not None and limits.covers(variant.dtype):
        floors = floors_ms(work.config, work.shape, variant.dtype, limits.peaks, limits.bandwidth)
    floors = {name: one for name, one in floors.items() if _comparable(variant, name)}
    stages = {name: stage_times(one, floors.get(name)) for name, one in samples.stages.items()}
    return VariantResult(stages, samples.stages, samples.error)


def stage_times(samples_ms: Sequence[float], floor_ms: float | None) -> StageTimes:
    """Percentiles of wall times [ms]."""
    p50, p95, p99 = (float(value) for value in np.percentile(samples_ms, (50, 95, 99)))
    return StageTimes(p50, p95, p99, max(samples_ms), min(samples_ms), floor_ms)


def _settings(config: BenchConfig, work: Workload, place: Place) -> dict[str, Any]:
    """What the numbers were measured with."""
    shape = work.shape
    return {
        "model": config.policy or config.preset,
        "views": shape.views,
        "prompt_tokens": config.prompt_tokens,
        "prefix": shape.prefix,
        "chunk": work.config.chunk,
        "steps": work.config.steps,
        "batch": shape.batch,
        "candidates": shape.candidates,
        "dtype": config.dtype,
        "device": config.device,
        "backend": config.backend,
        "threads": place.threads,
        "runs": config.runs,
        "seed": config.seed,
    }
