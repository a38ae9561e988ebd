"""What golden files leave out: weights that follow from their names, and lists of names.

The bits of a weight come from PCG64, whose raw stream numpy promises to keep; in a list of names
layers that are alike stand once.
"""

import hashlib
import json
import math
import re
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

__all__ = ["GOLDEN", "drawn", "read_names", "state_dict", "write_names"]

GOLDEN = Path(__file__).parent / "golden"
Shapes = dict[str, tuple[int, ...]]


def write_names(path: Path, shapes: Shapes) -> None:
    """One line per name, with ``{n}`` and the numbers it stands for."""
    groups: dict[tuple[str, tuple[int, ...]], list[int]] = {}
    for name, shape in shapes.items():
        number = re.search(r"(?<=layers\.)\d+", name)
        pattern = name if number is None else re.sub(r"(?<=layers\.)\d+", "{n}", name, count=1)
        groups.setdefault((pattern, tuple(shape)), [])
        if number is not None:
            groups[pattern, tuple(shape)].append(int(number[0]))
    lines = [
        json.dumps([pattern, list(shape), layers]) for (pattern, shape), layers in groups.items()
    ]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def read_names(path: Path) -> Shapes:
    """The inverse of :func:`write_names`."""
    shapes: Shapes = {}
    for pattern, shape, layers in json.loads(path.read_text()):
        for n in layers or [None]:
            shapes[pattern.replace("{n}", str(n))] = tuple(shape)
    return shapes


def drawn(name: str, shape: tuple[int, ...], least: float = -1.0, most: float = 1.0) -> Tensor:
    """Uniform fp32 numbers that bf16 can hold, the same for a name and shape on every machine."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    raw = np.random.PCG64(seed).random_raw(math.prod(shape)) >> np.uint64(40)
    unit = raw.astype(np.float64) / (1 << 24)
    values = least + (most - least) * unit
    return torch.from_numpy(values.astype(np.float32)).view(shape).bfloat16().float()


def state_dict(shapes: dict[str, tuple[int, ...]], ones: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Weights that pass a signal on: products of unit gain, small biases.

    Args:
        ones: parts of the names of norms whose weights lie around 1, not 0.
    """
    return {name: _weight(name, shape, ones) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...], ones: tuple[str, ...]) -> Tensor:
    if len(shape) > 1 and "embed" not in name:
        gain = math.sqrt(3.0 / math.prod(shape[1:]))
        return drawn(name, shape, -gain, gain)
    if name.endswith("bias"):
        return drawn(name, shape, -0.1, 0.1)
    if len(shape) > 1:
        return drawn(name, shape)
    middle = 1.0 if any(part in name for part in ones) else 0.0
    return drawn(name, shape, middle - 0.3, middle + 0.3)
