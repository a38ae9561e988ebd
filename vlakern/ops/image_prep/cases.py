"""The cases of ``image_prep``, for tests and benchmarks alike.

Cameras: 480 x 640 to 224 (pi0, PaliGemma, SigLIP) and to 512 (SmolVLA), 96 x 96 as rendered for
metaworld-small, 256 x 256 of LIBERO; and odd ones. Letters: V views, H and W, S and T, P.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vlakern.ops.image_prep.reference import (
    FILTERS,
    FITS,
    axes,
    normalisation,
    place,
    rows_of_patches,
)

__all__ = [
    "BENCH",
    "CASES",
    "Case",
    "draw",
    "make_inputs",
    "operations",
    "plain_image_prep",
    "traffic",
    "written",
]

LAYOUTS = ("dense", "cropped", "rgba", "planar", "expanded")
# Per channel, as CLIP's.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BF16, F16 = torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes:
        views, height, width: of the images.
        size: (S, T).
        layout: ``dense``, ``cropped`` (a window of larger images), ``rgba`` (the first three of
            four channels), ``planar`` (channels first in memory) or ``expanded`` (one image seen
            as all views).
        normalised: by mean and std per channel instead of to [-1, 1].
    """

    views: int
    height: int
    width: int
    size: tuple[int, int]
    fit: str = "letterbox"
    filter: str = "bilinear_antialias"
    patch: int = 0
    dtype: torch.dtype = torch.float32
    layout: str = "dense"
    normalised: bool = False
    pad: tuple[int, int, int] = (0, 0, 0)

    def __str__(self) -> str:
        """An id such as ``V2-480x640-224x224-letterbox-bilinear_antialias-P14-bf16-dense``."""
        short = {torch.float32: "fp32", BF16: "bf16", F16: "fp16", torch.float64: "fp64"}
        sizes = f"V{self.views}-{self.height}x{self.width}-{self.size[0]}x{self.size[1]}"
        words = [sizes, self.fit, self.filter, f"P{self.patch}", short[self.dtype], self.layout]
        return "-".join(words + ["normalised"] * self.normalised)

    @property
    def settings(self) -> dict[str, Any]:
        """The keyword arguments of ``image_prep``, but for the backend."""
        mean, std = (MEAN, STD) if self.normalised else ((), ())
        names = {"size": self.size, "fit": self.fit, "filter": self.filter, "pad": self.pad}
        return names | {"mean": mean, "std": std, "patch": self.patch, "dtype": self.dtype}


CASES = (
    Case(2, 96, 96, (96, 96)),
    Case(2, 96, 96, (96, 96), filter="bilinear", patch=16, dtype=BF16, normalised=True),
    Case(1, 48, 64, (22, 22)),
    Case(2, 48, 64, (28, 28), "openpi", patch=14, dtype=BF16),
    Case(1, 48, 64, (32, 32), "lerobot", "bilinear", pad=(0, 128, 255)),
    Case(2, 48, 64, (28, 28), "openpi", "bilinear", patch=14, pad=(-255, -255, -255)),
    Case(1, 32, 20, (32, 32), "openpi", "bilinear", pad=(-255, -1, 0)),
    Case(2, 48, 65, (28, 28), "cover", "bicubic_antialias", patch=14, normalised=True),
    Case(1, 31, 20, (20, 20), "cover", dtype=BF16),
    Case(1, 70, 20, (30, 41), "cover", "bilinear", layout="planar"),
    Case(1, 41, 67, (23, 31), "stretch", "bicubic_antialias", layout="cropped"),
    Case(2, 30, 17, (45, 52), "stretch", "bicubic_antialias", normalised=True, layout="rgba"),
    Case(2, 30, 17, (30, 20), "stretch", "bicubic_antialias", 5, F16, "planar", True),
    Case(3, 25, 25, (32, 32), "letterbox", "bicubic_antialias", 16, BF16, "expanded"),
    Case(2, 13, 40, (24, 24), "letterbox", "bilinear", 8, layout="planar", normalised=True),
    Case(2, 17, 9, (17, 9), "stretch", "bilinear_antialias", layout="rgba", normalised=True),
    Case(1, 40, 30, (40, 15), "stretch"),
    Case(1, 40, 30, (20, 30), "stretch", "bicubic_antialias"),
    Case(1, 40, 30, (40, 15), "stretch", "bilinear", dtype=F16),
    Case(1, 40, 30, (20, 30), "stretch", "bilinear", layout="cropped"),
    Case(1, 1, 1, (5, 7), "stretch", "bicubic_antialias"),
    Case(2, 1, 1, (3, 3), "letterbox", "bilinear", dtype=BF16),
    Case(1, 1, 50, (8, 8), pad=(7, 8, 9)),
    Case(1, 90, 1, (6, 6), "openpi", "bicubic_antialias", 3),
    Case(1, 300, 2, (7, 5), "lerobot", "bilinear"),
    Case(1, 19, 23, (1, 1), "stretch"),
    Case(2, 6, 5, (1, 12), "letterbox", "bicubic_antialias", 1),
    Case(0, 5, 6, (4, 4)),
    Case(2, 200, 150, (96, 96), "letterbox", "bilinear_antialias", 16, BF16),
)
BENCH = (
    Case(2, 480, 640, (224, 224)),
    Case(3, 480, 640, (224, 224), patch=14, dtype=BF16),
    Case(3, 480, 640, (224, 224), filter="bicubic_antialias"),
    Case(2, 480, 640, (224, 224), "openpi", "bilinear"),
    Case(2, 96, 96, (96, 96)),
    Case(2, 256, 256, (224, 224), patch=14, dtype=BF16),
    Case(2, 224, 224, (512, 512)),
    Case(2, 480, 640, (512, 512), "lerobot", "bilinear"),
)


def draw(generator: torch.Generator) -> Case:
    """A random case, small enough to be checked by the hundred."""

    def below(count: int) -> int:
        drawn = torch.randint(count, (1,), generator=generator, device=generator.device)
        return int(drawn)

    def side(most: int) -> int:
        return 1 + below(below(most) + 1)

    patch = (0, 0, 1, 2, 7)[below(5)]
    size = (side(60), side(60))
    if patch:
        size = (patch * side(60 // patch), patch * side(60 // patch))
    return Case(
        (1, 1, 2, 3)[below(4)],
        side(150),
        side(150),
        size,
        tuple(FITS)[below(len(FITS))],
        tuple(FILTERS)[below(len(FILTERS))],
        patch,
        (torch.float32, BF16, F16)[below(3)],
        LAYOUTS[below(len(LAYOUTS))],
        bool(below(2)),
        (below(256), below(256), below(256)),
    )


def make_inputs(case: Case, generator: torch.Generator) -> Tensor:
    """Random images ``[V, H, W, 3]`` on the generator's device: noise, its hardest content."""
    v, h, w = case.views, case.height, case.width
    shapes = {
        "dense": (v, h, w, 3),
        "cropped": (v, h + 3, w + 5, 3),
        "rgba": (v, h, w, 4),
        "planar": (v, 3, h, w),
        "expanded": (1, h, w, 3),
    }
    drawn = torch.randint(256, shapes[case.layout], generator=generator, device=generator.device)
    images = drawn.to(torch.uint8)
    if case.layout == "planar":
        images = images.permute(0, 2, 3, 1)
    if case.layout == "expanded":
        images = images.expand(v, h, w, 3)
    return images[:, -h:, 2 : 2 + w, :3] if case.layout == "cropped" else images[..., :3]


def plain_image_prep(
    images: Tensor,
    size: tuple[int, int],
    fit: str,
    filter: str,
    pad: tuple[int, ...],
    mean: tuple[float, ...],
    std: tuple[float, ...],
    patch: int,
    dtype: torch.dtype,
) -> Tensor:
    """What one writes in plain PyTorch, in fp32: torch's own filters, levels not rounded."""
    norm = normalisation(mean, std)
    shift, scale = (torch.tensor(v, device=images.device)[:, None, None] for v in norm[1:])
    pixels = (images.permute(0, 3, 1, 2).float() / norm.divisor - shift) / scale
    box = place(images.shape[1:3], size, fit)
    if (box.resized or box[2:4]) != tuple(images.shape[1:3]):
        mode, _, antialias = filter.partition("_")
        size_ = box.resized or box[2:4]
        pixels = F.interpolate(pixels, size_, mode=mode, antialias=bool(antialias))
    (down, right) = box.cut
    pixels = pixels[..., down : down + box.height, right : right + box.width]
    level = torch.tensor(pad, device=images.device, dtype=torch.float32)[:, None, None]
    full = ((level / norm.divisor - shift) / scale).repeat(len(images), 1, *size)
    full[..., box.top : box.top + box.height, box.left : box.left + box.width] = pixels
    return (rows_of_patches(full, patch) if patch else full).to(dtype)


def traffic(case: Case) -> int:
    """Bytes that the mathematics must move: the images read, the output written."""
    image = case.height * case.width * 3
    return case.views * (image + case.size[0] * case.size[1] * 3 * case.dtype.itemsize)


def written(case: Case) -> int:
    """Those of them that are written."""
    return case.views * case.size[0] * case.size[1] * 3 * case.dtype.itemsize


def operations(case: Case) -> int:
    """Additions and multiplications of resizing; normalising the output is not counted.

    An output of one pass needs a product and a sum for every weight that is not 0: along x for
    every row of the image, then along y for every column of the resized one, 3 channels each. With
    antialiasing levels are bytes and weights have 22 bits after the point, which is three products
    of bytes each. An axis that keeps its length needs nothing.
    """
    box = place((case.height, case.width), case.size, case.fit)
    y, x = axes(case.filter, (case.height, case.width), box)
    along_x = case.height * int((x.weights != 0).sum()) if box.width != case.width else 0
    along_y = box.width * int((y.weights != 0).sum()) if box.height != case.height else 0
    parts = 1 if case.filter == "bilinear" else 3
    return 2 * parts * 3 * case.views * (along_x + along_y)
