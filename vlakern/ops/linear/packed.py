"""Weights of ``linear`` rearranged once for the kernels, see csrc/linear/linear.h."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vlakern.errors import InputError
from vlakern.ops import _native
from vlakern.ops.linear.reference import KINDS, LEVELS, quantize_rows

__all__ = [
    "ISA",
    "ISAS",
    "LAYOUT",
    "PANEL_KINDS",
    "ROWS",
    "PackedLinear",
    "Sections",
    "Unpacked",
    "pack_linear",
]

LAYOUT = 1
ISA = "n16"  # pairs of panels of 16 weight rows: every CPU kernel reads them
ROWS = "rows"  # row after row, K padded with zeros to a multiple of 16: for GPUs
ISAS = (ISA, ROWS)
PANEL_KINDS = ("bf16", "fp32", "int8")
PANEL = 16
PAIR = 2 * PANEL
HUGE = 1 << 21  # bytes of a large page


class Unpacked(NamedTuple):
    """``weight [N, K]`` (as stored), the ``scale [N]`` of int8 and fp8, and ``bias [N]``."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None


class Sections(NamedTuple):
    """The parts of the flat tensor, as views: panels int32, scales and bias fp32."""

    panels: Tensor  # [P * S * 32], or [N * S] of rows
    w_scale: Tensor | None  # [P * 32], in the panels' order, or [N]
    bias: Tensor | None  # [N]


@dataclass(frozen=True)
class PackedLinear:
    """Packed weights: one flat tensor and static facts; for inference alone.

    Attributes:
        data: int32; panels or rows, then the bits of the scales, then those of the bias.
        n: weight rows N, counting gate and up.
        k: inputs K.
        kind: ``bf16``, ``fp32``, ``int8`` or ``fp8``.
        gate: the rows are a gate's and up's, for the gated activations alone; panels interleave
            them.
        has_bias: a bias is packed with the weights.
        layout: version of the layout.
        isa: the family of kernels that the layout is for.
    """

    data: Tensor
    n: int
    k: int
    kind: str
    gate: bool = False
    has_bias: bool = False
    layout: int = LAYOUT
    isa: str = ISA

    @property
    def columns(self) -> int:
        """Output columns: N, or N / 2 of a gated activation."""
        return self.n // 2 if self.gate else self.n

    @property
    def steps(self) -> int:
        """Steps of K, of 4 bytes each."""
        if self.isa == ROWS:
            return -(-self.k // 16) * 4 * KINDS[self.kind].itemsize
        return -(-self.k // _values_per_step(self.kind))

    @property
    def rows(self) -> int:
        """Weight rows that are stored, with those that pad panels."""
        if self.isa == ROWS:
            return self.n
        width = PANEL if self.gate else PAIR
        return -(-self.columns // width) * PAIR

    def sections(self) -> Sections:
        """Views of the flat tensor."""
        return sections(self.data, self)

    def unpack(self) -> Unpacked:
        """The weights as they were given to ``pack_linear``, rounded or quantised."""
        panels, w_scale, bias = self.sections()
        if self.isa == ROWS:
            return Unpacked(self.matrix()[:, : self.k].contiguous(), w_scale, bias)
        grid = panels.view(self.rows // PAIR, self.steps, PAIR).transpose(1, 2)
        flat = grid.reshape(-1).view(_stored(self.kind))
        stored = flat.view(self.rows, self.steps * _values_per_step(self.kind))[:, : self.k]
        weight = _given_order(stored, self)
        if self.kind == "int8":
            weight = (weight.to(torch.int16) - 128).to(torch.int8)
        scale = None if w_scale is None else _given_order(w_scale, self)
        return Unpacked(weight.contiguous(), scale, bias)

    def matrix(self) -> Tensor:
        """A view ``[N, K padded]`` of weights that lie row after row."""
        stored = self.sections().panels.view(KINDS[self.kind])
        return stored.view(self.n, self.steps * _values_per_step(self.kind))


def sections(data: Tensor, facts: PackedLinear) -> Sections:
    """The sections of a flat tensor with these facts."""
    first = facts.rows * facts.steps
    second = first + (facts.rows if facts.kind in LEVELS else 0)
    w_scale = data[first:second].view(torch.float32) if facts.kind in LEVELS else None
    bias = data[second : second + facts.n].view(torch.float32) if facts.has_bias else None
    return Sections(data[:first], w_scale, bias)


def pack_linear(
    weight: Tensor,
    dtype: str = "bf16",
    bias: Tensor | None = None,
    gate: bool = False,
    isa: str | None = None,
) -> PackedLinear:
    """Rounds or quantises weights and rearranges them.

    Args:
        weight: ``[N, K]``, any floating dtype.
        dtype: ``bf16``, ``fp32``, ``int8`` or ``fp8``; the last two have one scale per row, and
            ``linear`` quantises the rows of x, too (those of fp8 only where they are many).
        bias: ``[N]``, kept in fp32.
        gate: the first N / 2 rows are the gate's and the last N / 2 the up projection's; packed
            so that a gated activation finds both at hand.
        isa: ``n16`` for the CPU's kernels or ``rows`` for a GPU's; by default what the weight's
            device takes, and ``rows`` for fp8, which no CPU kernel takes.

    Raises:
        InputError: a shape or dtype does not fit.
    """
    if isa is None:
        isa = ROWS if weight.device.type == "cuda" or dtype == "fp8" else ISA
    _check(weight, dtype, bias, gate, isa)
    n, k = weight.shape
    empty = PackedLinear(weight.new_empty(0), n, k, dtype, gate, bias is not None, isa=isa)
    size = empty.rows * empty.steps + (empty.rows if dtype in LEVELS else 0) + n
    data = torch.empty(size, dtype=torch.int32, device=weight.device)
    if data.device.type == "cpu" and data.nbytes >= HUGE and _native.missing() is None:
        _native.cpu_module().prefer_huge_pages(data.data_ptr(), data.nbytes)
    packed = PackedLinear(data, n, k, dtype, gate, bias is not None, isa=isa)
    _fill(packed, weight.detach(), bias)
    return packed


def _fill(packed: PackedLinear, weight: Tensor, bias: Tensor | None) -> None:
    panels, w_scale, packed_bias = packed.sections()
    packed.data[panels.numel() :].zero_()
    stored, scale = weight, None
    if packed.kind in LEVELS:
        stored, scale = quantize_rows(weight, packed.kind)
    if packed.isa == ROWS:
        panels.zero_()
        packed.matrix()[:, : packed.k] = stored.to(KINDS[packed.kind])
    else:
        _fill_panels(packed, panels, stored)
    if scale is not None and w_scale is not None:
        w_scale.copy_(scale if packed.isa == ROWS else _panel_order(scale, packed))
    if bias is not None and packed_bias is not None:
        packed_bias.copy_(bias.detach())


def _fill_panels(packed: PackedLinear, panels: Tensor, stored: Tensor) -> None:
    shifted = stored + 128 if packed.kind == "int8" else stored
    stored = shifted.to(_stored(packed.kind))
    padded = functional.pad(stored, (0, packed.steps * _values_per_step(packed.kind) - packed.k))
    rows = _panel_order(padded, packed).reshape(-1).view(torch.int32)
    grid = rows.view(packed.rows // PAIR, PAIR, packed.steps)
    panels.view(packed.rows // PAIR, packed.steps, PAIR).copy_(grid.transpose(1, 2))


def _panel_order(rows: Tensor, packed: PackedLinear) -> Tensor:
    """Rows (of a matrix or a vector) padded, and 16 of the gate before their 16 of up."""
    parts = rows.chunk(2) if packed.gate and packed.n else (rows,)
    padding = packed.rows // len(parts) - parts[0].shape[0]
    after = (0, 0) * (rows.ndim - 1) + (0, padding)
    padded = [functional.pad(part, after) for part in parts]
    blocks = torch.stack([part.unflatten(0, (-1, PANEL)) for part in padded], 1)
    return blocks.flatten(0, 2)


def _given_order(rows: Tensor, packed: PackedLinear) -> Tensor:
    """The inverse of ``_panel_order``."""
    parts = 2 if packed.gate else 1
    blocks = rows.unflatten(0, (-1, parts, PANEL))
    return torch.cat([blocks[:, i].flatten(0, 1)[: packed.n // parts] for i in range(parts)])


def _values_per_step(kind: str) -> int:
    return 4 // KINDS[kind].itemsize


def _stored(kind: str) -> torch.dtype:
    return torch.uint8 if kind == "int8" else KINDS[kind]


def _check(weight: Tensor, dtype: str, bias: Tensor | None, gate: bool, isa: str) -> None:
    if dtype not in KINDS:
        raise InputError(f"pack_linear: dtype must be one of {', '.join(KINDS)}, got {dtype!r}")
    if isa not in ISAS or (isa == ISA and dtype not in PANEL_KINDS):
        kinds = f"{ROWS}, or {ISA} of {', '.join(PANEL_KINDS)}"
        raise InputError(f"pack_linear: isa must be {kinds}, got {isa!r} of {dtype}")
    if weight.ndim != 2 or not weight.is_floating_point():
        raise InputError(
            f"pack_linear: weight must be floating, [N, K], got {weight.dtype} {list(weight.shape)}"
        )
    n = weight.shape[0]
    if gate and n % 2:
        raise InputError(f"pack_linear: gate and up need an even number of rows, got {n}")
    if bias is not None and tuple(bias.shape) != (n,):
        raise InputError(f"pack_linear: bias must be [N] = [{n}], got {list(bias.shape)}")
