"""The whole way from camera images to actions on a GPU: our engine beside PyTorch, in one run.

``python benchmarks/e2e/bench_engine.py [--json FILE] [--limit SECONDS] [--case NAME ...]``. Random
weights; every contender is first compared with PyTorch in fp32 and not timed if it is wrong.
``wall`` is from images and words on the host to actions on the host; ``model`` is what lies between
two CUDA events around the work on the GPU. Not measured yet.
"""

import argparse
import gc
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlakern import ops
from vlakern.bench.accuracy import FACTOR, LIMITS
from vlakern.bench.contenders import Form, TorchContender
from vlakern.bench.weights import RandomWeights
from vlakern.bench.workload import CAMERA, Call, PresetSource, Workload
from vlakern.errors import VlakernError
from vlakern.infer.buckets import Ladders
from vlakern.infer.buffers import Limits
from vlakern.infer.graph_engine import GraphEngine
from vlakern.infer.packing import pack_model
from vlakern.models.config import VLAConfig
from vlakern.models.presets import preset
from vlakern.ops.linear.packed import ROWS

__all__ = ["CASES", "Case", "Row", "measure"]

WARM_UP = 3
STAGES = ("vision", "prefix", "ode")


@dataclass(frozen=True)
class Case:
    """One model and one size of call."""

    name: str
    config: Callable[[], VLAConfig]
    views: int
    prompt_tokens: int
    batch: int = 1
    candidates: int = 1


def of(name: str) -> Callable[[], VLAConfig]:
    """A preset; rows of the embedding that nobody reads cost nothing but the time to draw them."""
    return lambda: replace(preset(name), vocab_size=4096)


RETHINK, PI0 = ("rethink-2b", of("rethink-2b"), 2, 67), ("pi0", of("pi0"), 3, 17)
CASES = {
    one.name: one
    for one in (
        Case(*RETHINK),
        Case(*PI0),
        Case("smolvla", of("smolvla"), 3, 47),
        Case("pi05", of("pi05"), 3, 17),
        replace(Case(*RETHINK, candidates=8), name="rethink-2b candidates"),
        replace(Case(*RETHINK, batch=8), name="rethink-2b robots"),
        replace(Case(*PI0, candidates=8), name="pi0 candidates"),
    )
}


@dataclass(frozen=True)
class Row:
    """One contender in one case; times [ms] are percentiles of interleaved runs.

    Attributes:
        error: of its actions, see ``vlakern.bench.accuracy``.
        built_s: weights packed, kernels compiled (or found compiled) and graphs recorded [s].
        why_eager: why our engine launches its kernels one by one, if it does.
        recorded, recording_s: graphs that our engine recorded, and how long that took [s].
    """

    case: str
    name: str
    device: str
    prefix: int
    chunk: int
    steps: int
    batch: int
    candidates: int
    error: float
    wall_ms: dict[str, float]
    model_ms: dict[str, float]
    stages_ms: dict[str, float]
    built_s: float
    why_eager: str | None = None
    recorded: int = 0
    recording_s: float = 0.0


class Shaped(PresetSource):
    """Drawn weights for any configuration."""

    def __init__(self, config: VLAConfig) -> None:
        self.config = config
        self._random = self.weights = self.drawn = RandomWeights(config, 0)
        self.state_width = config.state_dim
        self._scale = np.ones(config.action_dim, np.float32)


def workload(case: Case) -> Workload:
    sizes = {"views": case.views, "batch": case.batch, "candidates": case.candidates}
    return Workload(Shaped(case.config()), prompt_tokens=case.prompt_tokens, **sizes)


class Clock:
    """Seconds between two marks, on the GPU's own clock if there is one."""

    def __init__(self, device: str) -> None:
        self._on_gpu = torch.device(device).type == "cuda"

    def mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()

    def between(self, begin: Any, end: Any) -> float:
        """[ms]; the device must have passed both."""
        return begin.elapsed_time(end) if self._on_gpu else (end - begin) * 1e3


class Ours:
    """The GPU engine with programs of exactly the case's size."""

    def __init__(self, work: Workload, dtype: str, device: str, **how: Any) -> None:
        begin, shape, config = time.perf_counter(), work.shape, work.config
        there = torch.device(device)
        model = pack_model(config, lambda name: work.weights(name).to(there), dtype, isa=ROWS)
        tokens, rows = shape.batch * shape.prefix, shape.batch * shape.candidates
        views = shape.batch * shape.views
        states = shape.batch if config.state == "action" else 0  # rows of the other expert
        self.engine = GraphEngine(
            model,
            Limits(shape.batch, views, tokens, rows),
            steps=config.steps,
            solver=config.solver,
            image_sizes=[CAMERA] * shape.views,
            sizes=Ladders((views,), (tokens - states,), (rows,)),
            **how,
        )
        self.work, self.built_s = work, time.perf_counter() - begin
        graphs, self.why_eager = self.engine.graphs, self.engine.graphs.why_eager
        self.recorded, self.recording_s = graphs.recorded, graphs.recording_s
        self._index = torch.arange(shape.batch, dtype=torch.int32)
        self._index = self._index.repeat_interleave(shape.candidates)

    def whole(self, call: Call) -> Tensor:
        """From images to actions on the host."""
        images = self.work.images
        return self.engine.act(images, call.batch, call.noise_NHA, self._index).cpu()

    def stages(self, call: Call) -> Iterator[None]:
        """The stages of the last call again, without the copies before them."""
        sizes = self.engine.sizes
        parts = (("vision", sizes.views), ("prefix", sizes.tokens), ("integrate", sizes.rows))
        for name, size in parts:
            yield self.engine.graphs.run((name, size[-1]))


class Theirs:
    """PyTorch, stage by stage, with everything that can be on the GPU before it begins."""

    why_eager, recorded, recording_s = None, 0, 0.0

    def __init__(self, work: Workload, dtype: str, device: str, form: Form) -> None:
        begin = time.perf_counter()
        self.work, self._device = work, device
        self.model = TorchContender(work, dtype, device, form)
        self.whole(work.call(0))
        self.built_s = time.perf_counter() - begin

    def whole(self, call: Call) -> Tensor:
        # Images are resized where the rest is computed, by the kernel that ours uses.
        images = torch.from_numpy(np.stack(self.work.images)).to(self._device)
        side, dtype = self.work.config.vision.image_size, self.model.model.dtype
        self.model._pixels = ops.image_prep(images, size=side, dtype=dtype)
        for _ in self.stages(call):
            pass
        return self._actions.cpu()

    def stages(self, call: Call) -> Iterator[None]:
        call = replace(call, noise_NHA=call.noise_NHA.to(self._device))
        yield self.model.vision()
        yield self.model.prefix(call)
        self._actions = self.model.ode(call)
        yield


def timed(one: Any, call: Call, clock: Clock) -> tuple[float, list[float]]:
    """Wall time of a call [ms], and of each stage on the device [ms]."""
    clock.wait()
    begin = time.perf_counter()
    one.whole(call)
    clock.wait()
    wall = (time.perf_counter() - begin) * 1e3
    marks = [clock.mark()]
    marks += [clock.mark() for _ in one.stages(call)]
    clock.wait()
    return wall, [clock.between(*pair) for pair in itertools.pairwise(marks)]


def percentiles(samples: Sequence[float]) -> dict[str, float]:
    names = ("p50", "p95", "p99")
    found = np.percentile(samples, [int(name[1:]) for name in names])
    return {**dict(zip(names, map(float, found), strict=True)), "min": float(min(samples))}


def error_of(found: Tensor, exact: Tensor, noise: Tensor) -> float:
    return float((found - exact).norm() / (exact - noise).norm())


def measure(
    case: Case,
    names: Sequence[str],
    make: Callable[[Workload, str], Any],
    device: str,
    repeats: int,
    deadline: float,
) -> list[Row]:
    """Compares, then times what is right in turn, until the deadline.

    Args:
        names: of contenders; ``make`` builds one, or raises what says why it cannot be.
    """
    work, clock = workload(case), Clock(device)
    call = work.call(0)
    exact = Theirs(work, "fp32", device, "eager").whole(call)
    eager = Theirs(work, "bf16", device, "eager")
    plain = error_of(eager.whole(call), exact, call.noise_NHA)
    ready: dict[str, Any] = {}
    errors: dict[str, float] = {}
    for name in names:
        if time.monotonic() > deadline:
            print(f"{case.name}: no time is left for {name}", flush=True)
            break
        try:
            one = eager if name == "torch-eager-bf16" else make(work, name)
            errors[name] = error_of(one.whole(call), exact, call.noise_NHA)
        except (RuntimeError, VlakernError) as error:
            print(f"{case.name}: {name} cannot run: {error}", flush=True)
            continue
        allowed = LIMITS.get(name.rsplit("-", 1)[-1], FACTOR * plain)
        if errors[name] <= allowed:
            ready[name] = one
        else:
            print(f"{case.name}: {name} is wrong, {errors[name]:.2e} of {allowed:.2e}", flush=True)
        gc.collect()
    samples: dict[str, list[tuple[float, list[float]]]] = {name: [] for name in ready}
    for index in range(WARM_UP + repeats):
        if index > 2 * WARM_UP and time.monotonic() > deadline:
            break
        for name, one in ready.items():
            found = timed(one, work.call(index), clock)
            if index >= WARM_UP:
                samples[name].append(found)
    return [
        row_of(case, name, device, work, errors[name], ready[name], found)
        for name, found in samples.items()
        if found
    ]


def row_of(
    case: Case,
    name: str,
    device: str,
    work: Workload,
    error: float,
    one: Any,
    samples: Sequence[tuple[float, Sequence[float]]],
) -> Row:
    stages = np.median([parts for _, parts in samples], axis=0)
    shape, config = work.shape, work.config
    return Row(
        case.name,
        name,
        device,
        shape.prefix,
        config.chunk,
        config.steps,
        shape.batch,
        shape.candidates,
        error,
        percentiles([wall for wall, _ in samples]),
        percentiles([sum(parts) for _, parts in samples]),
        dict(zip(STAGES, map(float, stages), strict=True)),
        one.built_s,
        one.why_eager,
        one.recorded,
        one.recording_s,
    )


def contender(work: Workload, name: str, device: str) -> Any:
    """By a name such as ``vlakern-bf16``, ``vlakern-cuda-bf16`` or ``torch-eager-bf16``."""
    kind, _, dtype = name.rpartition("-")
    if kind.startswith("vlakern"):
        return Ours(work, dtype, device, loop="cuda" if kind.endswith("-cuda") else "graph")
    return Theirs(work, dtype, device, kind.removeprefix("torch-"))  # type: ignore[arg-type]


def compile_all(names: Sequence[str], limit: float) -> None:
    """Builds every case's engine in a process of its own, all at once: kernels are compiled by one
    thread of each, and found compiled afterwards."""
    command = [sys.executable, str(Path(__file__).resolve()), "--build"]
    children = [subprocess.Popen([*command, "--case", name]) for name in names]
    deadline = time.monotonic() + limit
    for child in children:
        try:
            child.wait(max(deadline - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def show(row: Row) -> None:
    stages = ", ".join(f"{name} {value:.2f}" for name, value in row.stages_ms.items())
    print(
        f"{row.case:<22} {row.name:<18} wall {row.wall_ms['p50']:8.2f} model"
        f" {row.model_ms['p50']:8.2f} ms p99-p50 {row.model_ms['p99'] - row.model_ms['p50']:.2f}"
        f"  ({stages})  error {row.error:.1e}",
        flush=True,
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="+", choices=tuple(CASES), default=list(CASES))
    default = ["vlakern-bf16", "vlakern-fp8", "torch-eager-bf16", "torch-flash-bf16"]
    default += ["torch-flash-attn-bf16"] if find_spec("flash_attn") is not None else []
    default.append("torch-tuned-bf16")  # the slowest to compile: where time ends it is left out
    parser.add_argument("--name", nargs="+", default=default, help="contenders")
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--limit", type=float, default=300.0, help="[s]")
    parser.add_argument("--json", type=Path, help="append JSON lines to this file")
    parser.add_argument("--build", action="store_true", help="only compile our kernels")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    begin, device = time.monotonic(), "cuda"
    torch.backends.cudnn.allow_tf32 = False  # the default, which is not fp32: errors count from it
    if args.build:
        for name in args.case:
            Ours(workload(CASES[name]), "bf16", device)
        return
    compile_all(args.case, 0.5 * args.limit)
    for i, name in enumerate(args.case):
        # What earlier cases leave over is the later ones'.
        left = begin + args.limit - time.monotonic()
        deadline = time.monotonic() + left / (len(args.case) - i)
        rows = measure(
            CASES[name],
            args.name,
            lambda work, one: contender(work, one, device),
            device,
            args.repeats,
            deadline,
        )
        for row in rows:
            show(row)
            if args.json:
                with args.json.open("a") as file:
                    file.write(json.dumps(asdict(row)) + "\n")
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
