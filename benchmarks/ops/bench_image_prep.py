"""Speed of image_prep as a control loop calls it; nothing is printed while the op is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_image_prep.py [--device cuda] [--json FILE]``.
Under pytest-benchmark: ``pytest benchmarks/ops/bench_image_prep.py``.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vlakern import ops
from vlakern.ops.image_prep.cases import BENCH, Case, make_inputs, plain_image_prep, traffic
from vlakern.ops.image_prep.reference import image_prep_reference, place, rows_of_patches
from vlakern.testing import assert_accurate, generator, interleave_on
from vlakern.testing.timing import cold_copies, copy_bandwidth, interleave_cold, keep_memory

bandwidth = cache(copy_bandwidth)


@dataclass(frozen=True)
class Row:
    """One case on one backend; times are the best of interleaved runs, on a GPU the medians.

    Attributes:
        pillow_over_vlakern: Pillow's resize and paste, then torch's normalisation. Where the filter
            has no antialiasing Pillow's has, since it knows no other.
        torch_over_vlakern: torch's interpolate, with its own antialiasing.
    """

    op: str
    case: str
    device: str
    backend: str
    microseconds: float
    gigabytes_per_second: float
    fraction_of_copy_bandwidth: float
    pillow_over_vlakern: float
    torch_over_vlakern: float
    clock: str


def check(case: Case, images: Tensor, backend: str) -> None:
    """Raises AssertionError if the op is wrong on the very images that are timed."""
    settings: dict[str, Any] = case.settings
    found = ops.image_prep(images, **settings, backend=backend)
    if case.filter != "bilinear":
        assert torch.equal(found, image_prep_reference(images, **settings)), str(case)
        return
    settings["dtype"] = torch.float64
    exact = image_prep_reference(images, **settings)
    assert_accurate(found, exact, plain_image_prep(images, **case.settings), str(case))


def bind(case: Case, images: Tensor, backend: str) -> Callable[[], None]:
    """The timed call."""
    settings = case.settings
    dtype = settings.pop("dtype")
    out = torch.empty_like(ops.image_prep(images, **settings, dtype=dtype, backend="reference"))
    return ops.image_prep_out(images, **settings, out=out, backend=backend)


def with_pillow(case: Case, images_VHW3: np.ndarray, device: str) -> Tensor:
    """What one writes with Pillow: resize, paste, then torch to normalise."""
    box = place(images_VHW3.shape[1:3], case.size, case.fit)
    bicubic = case.filter.startswith("bicubic")
    method = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR
    canvases = []
    for image in images_VHW3:
        canvas = Image.new("RGB", (case.size[1], case.size[0]), case.pad)
        canvas.paste(
            Image.fromarray(image).resize((box.width, box.height), method), (box.left, box.top)
        )
        canvases.append(np.asarray(canvas))
    levels = torch.from_numpy(np.stack(canvases)).to(device)
    pixels = levels.permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return (rows_of_patches(pixels, case.patch) if case.patch else pixels).to(case.dtype)


def contenders(
    case: Case, images: Tensor, device: str, backend: str
) -> dict[str, Callable[[], object]]:
    """vlakern's call, Pillow's and torch's, by name."""
    arrays = images.cpu().numpy()
    return {
        "vlakern": bind(case, images, backend),
        "pillow": lambda: with_pillow(case, arrays, device),
        "torch": lambda: plain_image_prep(images, **case.settings),
    }


def measure(case: Case, device: str, backend: str, repeats: int) -> Row:
    """Checks, then times one case against Pillow and against torch."""
    images = make_inputs(case, generator(str(case), device))
    check(case, images, backend)
    if device == "cpu":
        many = [images.clone() for _ in range(cold_copies(traffic(case)))]
        sets = [contenders(case, one, device, backend) for one in many]
        timings = interleave_cold({n: [one[n] for one in sets] for n in sets[0]}, repeats)
    else:
        calls = contenders(case, images, device, backend)
        timings = interleave_on(device, calls, repeats, on_host={"pillow"})
    kind = "best" if device == "cpu" else "median"
    seconds = {name: getattr(timing, kind) for name, timing in timings.items()}
    ours = seconds["vlakern"]
    return Row(
        "image_prep",
        str(case),
        device,
        backend,
        ours * 1e6,
        traffic(case) / ours / 1e9,
        traffic(case) / ours / bandwidth(device),
        seconds["pillow"] / ours,
        seconds["torch"] / ours,
        timings["vlakern"].clock,
    )


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_image_prep(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the traffic beside it."""
    row = measure(case, "cpu", "auto", repeats=10)
    benchmark.extra_info.update(asdict(row))
    benchmark(bind(case, make_inputs(case, generator(str(case))), "auto"))


def table(args: argparse.Namespace) -> None:
    print(f"copy {bandwidth(args.device) / 1e9:.1f} GB/s, {torch.get_num_threads()} threads")
    print(f"{'us':>10} {'GB/s':>8} {'of copy':>8} {'x pillow':>8} {'x torch':>8}  backend    case")
    for case in BENCH:
        for backend in args.backend:
            row = measure(case, args.device, backend, args.repeats)
            print(
                f"{row.microseconds:10.1f} {row.gigabytes_per_second:8.1f} "
                f"{row.fraction_of_copy_bandwidth:8.2f} {row.pillow_over_vlakern:8.1f} "
                f"{row.torch_over_vlakern:8.1f}  {backend:<10} {case}"
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
