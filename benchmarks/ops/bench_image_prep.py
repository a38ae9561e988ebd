"""Speed of image_prep as a control loop calls it; nothing is printed while the op is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_image_prep.py [--device cuda] [--json FILE]``;
how it is timed and beside what is said in ``contest.py`` and ``rivals.py``. torch's is
``interpolate`` in floating point, which may be off by a level; Pillow's is resize and paste, then
torch to normalise; it has no filter without antialiasing. Under pytest-benchmark: ``pytest
benchmarks/ops/bench_image_prep.py``.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from vlakern import ops
from vlakern.ops.image_prep.cases import (
    BENCH,
    Case,
    make_inputs,
    operations,
    plain_image_prep,
    traffic,
    written,
)
from vlakern.ops.image_prep.reference import image_prep_reference, place, rows_of_patches
from vlakern.testing import assert_accurate, generator

sys.path.insert(0, str(Path(__file__).parent))
from contest import Entry, How, main, under_pytest
from plain import Plain, Run, Task
from rivals import Rival

LEVEL = 4e-2  # relative error of results that are off by a level of 255 or less


class Prep(torch.nn.Module):
    """torch's interpolate and normalisation, in the dtype that the module is put to."""

    def __init__(self, case: Case):
        super().__init__()
        self.case, self.dtype_of = case, torch.nn.Buffer(torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        settings = self.case.settings
        settings["dtype"] = self.dtype_of.dtype
        return plain_image_prep(images, **settings)


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


def bind(case: Case, images: Tensor, backend: str) -> Run:
    """The timed call."""
    settings = case.settings
    dtype, own = settings.pop("dtype"), images.clone()
    out = torch.empty_like(ops.image_prep(own, **settings, dtype=dtype, backend="reference"))
    return ops.image_prep_out(own, **settings, out=out, backend=backend)


def with_pillow(case: Case, device: str, task: Task) -> Run:
    """What one writes with Pillow: resize, paste, then torch to normalise."""
    if case.filter == "bilinear":
        raise ValueError("Pillow always filters with antialiasing")
    images_VHW3 = task.inputs[0].cpu().numpy().copy()
    box = place(images_VHW3.shape[1:3], case.size, case.fit)
    bicubic = case.filter.startswith("bicubic")
    method = Image.Resampling.BICUBIC if bicubic else Image.Resampling.BILINEAR

    def run() -> Tensor:
        canvases = []
        for image in images_VHW3:
            canvas = Image.new("RGB", (case.size[1], case.size[0]), case.pad)
            small = Image.fromarray(image).resize((box.width, box.height), method)
            canvas.paste(small, (box.left, box.top))
            canvases.append(np.asarray(canvas))
        levels = torch.from_numpy(np.stack(canvases)).to(device)
        pixels = levels.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        return (rows_of_patches(pixels, case.patch) if case.patch else pixels).to(case.dtype)

    return run


def make_entry(case: Case, how: How) -> Entry:
    """Everything that is timed for one case."""
    images = make_inputs(case, generator(str(case), how.device))
    settings = case.settings
    settings["dtype"] = torch.float64
    right = image_prep_reference(images, **settings)
    antialias = case.filter != "bilinear"
    out = written(case)
    return Entry(
        "image_prep",
        str(case),
        "bf16" if case.dtype == torch.bfloat16 else "fp32",
        partial(check, case, images, how.backend),
        {"vlakern": partial(bind, case, images, how.backend)},
        Plain({"": Prep(case)}, (images,), (right,), rounding=LEVEL * antialias),
        operations(case),
        traffic(case) - out,
        out,
        peak="int8" if antialias else "fp32",
        others={"Pillow": Rival(partial(with_pillow, case, how.device), "bf16", on_host=True)},
    )


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_image_prep(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table, with the contest's beside it."""
    under_pytest(benchmark, partial(make_entry, case))


if __name__ == "__main__":
    entries = [(str(case), partial(make_entry, case)) for case in BENCH]
    main(str(__doc__), entries, devices=("cpu", "cuda"))
