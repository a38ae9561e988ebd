"""The cases of ``action_decode``, for tests and benchmarks alike.

Letters: B rows, H positions of the chunk, A slots, N columns, C copies, P poses.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlakern.ops.action_decode.reference import FRAMES, KIND_WIDTHS, KINDS

__all__ = [
    "BENCH",
    "CASES",
    "Case",
    "bimanual_inputs",
    "make_inputs",
    "operations",
    "pose_inputs",
    "traffic",
    "written",
]


@dataclass(frozen=True)
class Case:
    """One call whose tables are drawn by chance.

    Attributes:
        poses: a word per pose, ``"axis_angle:rotation_6d"`` for the kinds in x and in out, or
            ``"bare"`` for a position alone.
        layout: ``"dense"``, ``"padded"`` (positions further apart than A) or ``"slots apart"``
            (the slots' stride is not 1).
    """

    rows: int
    positions: int
    slots: int
    frame: str
    poses: tuple[str, ...] = ()
    copies: int = 0
    dtype: torch.dtype = torch.float32
    layout: str = "dense"

    def __str__(self) -> str:
        """An id such as ``B1-H16-A200-world_delta-2poses-copies14-fp32-dense``."""
        short = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        sizes = f"B{self.rows}-H{self.positions}-A{self.slots}"
        tables = f"{'+'.join(self.poses) or 'no_poses'}-copies{self.copies}"
        layout = self.layout.replace(" ", "_")
        return f"{sizes}-{self.frame}-{tables}-{short[self.dtype]}-{layout}"


BF16, F16 = torch.bfloat16, torch.float16
# Every kind in x and every kind in out once.
MIXED = tuple(f"{one}:{KINDS[(i + 1) % len(KINDS)]}" for i, one in enumerate(KINDS))
AXIS = "axis_angle:axis_angle"

CASES = (
    *(Case(2, 7, 61, frame, MIXED, 5) for frame in FRAMES),
    *(Case(3, 5, 33, frame, (AXIS, "rotation_6d:rotation_6d"), 17, BF16) for frame in FRAMES),
    Case(2, 3, 29, "eef_delta", (AXIS,), 4, F16),
    Case(4, 9, 17, "world_delta", ("bare", "bare"), 3),
    Case(4, 9, 17, "world_relative", ("bare", AXIS), 1, layout="padded"),
    Case(3, 5, 31, "eef_relative", ("quaternion_xyzw:axis_angle",), 9, layout="slots apart"),
    Case(3, 5, 31, "eef_delta", ("quaternion_wxyz:quaternion_xyzw",), 9, BF16, "slots apart"),
    Case(1, 1, 9, "eef_delta", (AXIS,)),
    Case(5, 16, 12, "world_relative", (), 12),
    Case(0, 4, 12, "eef_relative", (AXIS,), 2),
    Case(2, 0, 12, "eef_delta", (AXIS,), 2),
    Case(2, 3, 12, "eef_delta"),
    Case(2, 3, 0, "world_delta"),
)

BENCH = tuple((rows, frame) for rows in (1, 64) for frame in FRAMES)


def make_inputs(case: Case, generator: torch.Generator) -> dict[str, Any]:
    """The arguments of one call, but for the backend, on the generator's device."""
    b, a, p = case.rows, case.slots, len(case.poses)
    copies, poses, width = _tables(case, generator)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device)

    quaternions = torch.nn.functional.normalize(normal(b, p, 4), dim=-1)
    return {
        "x": _chunk(case, generator),
        "scale": 0.2 + normal(a).abs(),
        "offset": normal(a),
        "base": torch.cat((normal(b, p, 3), quaternions), -1),
        "copies": copies,
        "affine": normal(case.copies, 2),
        "poses": poses,
        "frame": case.frame,
        "width": width,
    }


def _tables(case: Case, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """Copies, poses and width: sources anywhere, also twice; columns in a random order."""

    def below(count: int) -> int:
        drawn = torch.randint(count, (1,), generator=generator, device=generator.device)
        return int(drawn)

    copies = [[below(case.slots), 0, below(2)] for _ in range(case.copies)]
    poses, blocks = [], [(row, 1, 1) for row in copies]  # a row, where its column stands, its width
    for words in case.poses:
        row = [below(case.slots - 2), -1, 0, 0, -1, 0]
        blocks.append((row, 3, 3))
        if words != "bare":
            row[2], row[5] = (KINDS.index(word) for word in words.split(":"))
            row[1] = below(case.slots - KIND_WIDTHS[row[2]] + 1)
            blocks.append((row, 4, KIND_WIDTHS[row[5]]))
        poses.append(row)
    order = torch.randperm(len(blocks), generator=generator, device=generator.device)
    width = 0
    for row, place, count in (blocks[i] for i in order.tolist()):
        row[place] = width
        width += count
    return _table(copies, 3, generator.device), _table(poses, 6, generator.device), width


def _table(rows: list[list[int]], columns: int, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.int32, device=device).reshape(len(rows), columns)


def _chunk(case: Case, generator: torch.Generator) -> Tensor:
    b, h, a = case.rows, case.positions, case.slots
    shape = {"dense": (b, h, a), "padded": (b, h, a + 3), "slots apart": (b, h, 2 * a)}[case.layout]
    full = torch.randn(shape, generator=generator, device=generator.device).to(case.dtype)
    return full[..., ::2] if case.layout == "slots apart" else full[..., :a]


def bimanual_inputs(rows: int, frame: str, generator: torch.Generator) -> dict[str, Any]:
    """16 positions of the unified 200-slot vector with everything in it going out.

    Two arms with axis-angle rotations, two binary grippers, and every other slot as it is.
    """
    slots, device = 200, generator.device
    poses = [[start, start + 3, 0] * 2 for start in (0, 9)]
    decoded = {start + i for start in (0, 9) for i in range(6)}
    copies = [[i, i, int(i in (18, 19))] for i in range(slots) if i not in decoded]
    affine = torch.tensor([[1.0, 0.0]], device=device).repeat(len(copies), 1)
    inputs = make_inputs(Case(rows, 16, slots, frame, (AXIS, AXIS), len(copies)), generator)
    tables = {"copies": _table(copies, 3, device), "poses": _table(poses, 6, device)}
    return inputs | tables | {"affine": affine, "width": slots}


def pose_inputs(x: Tensor, base: Tensor, kind: str, kind_out: str, frame: str) -> dict[str, Any]:
    """A single pose: x ``[B, H, 3 + W]`` in the unit of the base ``[B, 7]``, as are the columns."""
    ones = torch.ones(x.shape[2], dtype=base.dtype, device=x.device)
    row = [0, 3, KINDS.index(kind), 0, 3, KINDS.index(kind_out)]
    return {
        "x": x,
        "scale": ones,
        "offset": torch.zeros_like(ones),
        "base": base[:, None],
        "copies": _table([], 3, x.device),
        "affine": base.new_zeros(0, 2),
        "poses": _table([row], 6, x.device),
        "frame": frame,
        "width": 3 + KIND_WIDTHS[row[5]],
    }


def operations(inputs: dict[str, Any]) -> int:
    """Additions and multiplications: 4 a copy (two scales, two offsets); for a pose its 6 numbers
    to their unit (12), axis-angle to a matrix (30) and back (20), a product with another matrix
    (45), and its turned position (18)."""
    positions = inputs["x"].shape[0] * inputs["x"].shape[1]
    return positions * (4 * len(inputs["copies"]) + 125 * len(inputs["poses"]))


def traffic(inputs: dict[str, Any]) -> int:
    """Bytes that the mathematics must move: the chunk and the tables read, columns written."""
    names = ("x", "scale", "offset", "base", "copies", "affine", "poses")
    return sum(inputs[name].nbytes for name in names) + written(inputs)


def written(inputs: dict[str, Any]) -> int:
    """Those of them that are written, in fp32."""
    return 4 * inputs["x"].shape[0] * inputs["x"].shape[1] * inputs["width"]
