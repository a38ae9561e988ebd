"""Speed of flow_mix and flow_loss; nothing is printed while the op is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_flow_loss.py [--device cuda] [--json FILE]``.
Under pytest-benchmark: ``pytest benchmarks/ops/bench_flow_loss.py``. Every row compares with what
training does without the op: torch.randn, the mixture, a stored target and the masked loss, eager.
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
from torch import Tensor

from vlakern import ops
from vlakern.ops.flow_loss.cases import (
    BENCH,
    Case,
    loss_arguments,
    make_inputs,
    mix_arguments,
    plain_loss,
    plain_mix,
    plain_noise,
)
from vlakern.ops.flow_loss.reference import flow_loss_reference
from vlakern.testing import assert_accurate, generator, interleave_on
from vlakern.testing.timing import copy_bandwidth, interleave_cold, keep_memory

bandwidth = cache(copy_bandwidth)
FACES = ("mix", "loss", "step")


@dataclass(frozen=True)
class Row:
    """One face of one case on one backend; times are medians of interleaved runs.

    Attributes:
        face: ``mix``, ``loss`` (forward and backward) or ``step`` (both).
        gigabytes_per_second: of what the mathematics must move: action, mask and velocity read, x
            and the gradient written, all once.
    """

    op: str
    case: str
    face: str
    device: str
    backend: str
    microseconds: float
    gigabytes_per_second: float
    fraction_of_copy_bandwidth: float
    million_normals_per_second: float
    torch_eager_over_vlakern: float
    clock: str


def check(case: Case, inputs: dict[str, Any], backend: str) -> None:
    """Raises AssertionError if the op is wrong on the very inputs that are timed."""
    wide = {
        name: value.double() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    x, tau = ops.flow_mix(**mix_arguments(case, inputs), backend=backend)
    exact, _ = ops.flow_mix(**mix_arguments(case, wide), backend="reference")
    z = plain_noise(case, inputs)
    assert_accurate(x, exact, plain_mix(case, inputs, z, tau), f"{case}: x")
    found = ops.flow_loss(**loss_arguments(case, inputs), backend=backend)
    best = flow_loss_reference(**loss_arguments(case, wide))[0][0]
    plain = plain_loss(case, inputs, inputs["velocity"], z)
    assert_accurate(found, best, plain, f"{case}: loss")


def eager(case: Case, inputs: dict[str, Any]) -> dict[str, Callable[[], object]]:
    """What training does without the op."""
    shape = (case.rows, case.positions, case.slots)
    device = inputs["action"].device

    def mix() -> tuple[Tensor, Tensor]:
        noise = torch.randn(shape, device=device)
        tau = (0.999 - torch.rand(case.rows, device=device) ** (1 / 1.5)) / 0.999
        if inputs["slots"] is not None:
            noise = noise * inputs["slots"].repeat_interleave(case.per_sample, 0)[:, None]
        return noise, plain_mix(case, inputs, noise, tau)

    def loss(noise: Tensor) -> Tensor:
        v = inputs["velocity"].detach().requires_grad_()
        return torch.autograd.grad(plain_loss(case, inputs, v, noise), v)[0]

    noise = mix()[0]
    return {"mix": mix, "loss": lambda: loss(noise), "step": lambda: loss(mix()[0])}


def fused(case: Case, inputs: dict[str, Any], backend: str) -> dict[str, Callable[[], object]]:
    """The same with the op."""
    mixed, given = mix_arguments(case, inputs), loss_arguments(case, inputs)

    def mix() -> object:
        return ops.flow_mix(**mixed, backend=backend)

    def loss() -> Tensor:
        v = inputs["velocity"].detach().requires_grad_()
        found = ops.flow_loss(**given | {"velocity": v}, backend=backend)
        return torch.autograd.grad(found, v)[0]

    return {"mix": mix, "loss": loss, "step": lambda: (mix(), loss())}


def traffic(case: Case, inputs: dict[str, Any]) -> dict[str, int]:
    """Bytes that each face must move."""
    per_sample = case.samples * case.positions * case.slots
    per_row = case.rows * case.positions * case.slots * case.dtype.itemsize
    mask = 0 if inputs["mask"] is None else inputs["mask"].element_size() * per_sample
    mix = 4 * per_sample + per_row
    # The denominators must be known before the gradient: two passes.
    loss = 2 * (4 * per_sample + mask + per_row) + per_row
    return {"mix": mix, "loss": loss, "step": mix + loss}


def measure(case: Case, device: str, backend: str, repeats: int) -> list[Row]:
    """Checks, then times one case."""
    inputs = make_inputs(case, generator(str(case), device))
    check(case, inputs, backend)
    moved, rows = traffic(case, inputs), []
    ours, theirs = fused(case, inputs, backend), eager(case, inputs)
    for face in FACES:
        contenders = {"vlakern": ours[face], "torch": theirs[face]}
        timings = (
            interleave_cold({n: [one] * 2 for n, one in contenders.items()}, repeats)
            if device == "cpu"
            else interleave_on(device, contenders, repeats)
        )
        seconds = timings["vlakern"].median
        drawn = case.rows * case.positions * case.slots * {"mix": 1, "loss": 2, "step": 3}[face]
        rows.append(
            Row(
                "flow_loss",
                str(case),
                face,
                device,
                backend,
                seconds * 1e6,
                moved[face] / seconds / 1e9,
                moved[face] / seconds / bandwidth(device),
                drawn / seconds / 1e6,
                timings["torch"].median / seconds,
                timings["vlakern"].clock,
            )
        )
    return rows


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_flow_loss(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table: a training step's two ends."""
    benchmark.extra_info.update(asdict(measure(case, "cpu", "auto", repeats=10)[-1]))
    benchmark(fused(case, make_inputs(case, generator(str(case))), "auto")["step"])


def table(args: argparse.Namespace) -> None:
    print(f"copy {bandwidth(args.device) / 1e9:.1f} GB/s, {torch.get_num_threads()} threads")
    header = f"{'us':>10} {'GB/s':>8} {'of copy':>8} {'M drawn/s':>10} {'x eager':>8}"
    print(f"{header}  face  backend    case")
    for case in BENCH:
        for backend in args.backend:
            for row in measure(case, args.device, backend, args.repeats):
                print(
                    f"{row.microseconds:10.1f} {row.gigabytes_per_second:8.1f} "
                    f"{row.fraction_of_copy_bandwidth:8.2f} {row.million_normals_per_second:10.0f} "
                    f"{row.torch_eager_over_vlakern:8.1f}  {row.face:<5} {backend:<10} {case}"
                )
                if args.json:
                    with args.json.open("a") as file:
                        file.write(json.dumps(asdict(row)) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--backend", nargs="+", default=["auto"])
    parser.add_argument("--repeats", type=int, default=30)
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
