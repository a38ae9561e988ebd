"""The cases of ``ode_step``, for tests and benchmarks alike.

Chunks and widths: 16 positions of the 200-slot unified vector, 50 x 32 for pi0 and SmolVLA, and odd
ones. Letters: B rows, H positions, A slots.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlakern.ops.ode_step.reference import STAGES

__all__ = [
    "BENCH",
    "CASES",
    "Case",
    "make_inputs",
    "operations",
    "plain_ode_step",
    "traffic",
    "written",
]


@dataclass(frozen=True)
class Case:
    """One call: sizes, dtypes, stage and what is optional in it.

    Attributes:
        frozen: longest frozen prefix; rows draw theirs from 0 to it. 0 gives no frozen argument.
        mask: ``""``, ``"A"`` (shared by the rows) or ``"BA"`` (per row).
        per_position: tau is ``[B, H]``.
        layout: ``"dense"``, ``"padded"`` (positions further apart than A) or ``"slots apart"``
            (the slots' stride is not 1).
    """

    rows: int
    positions: int
    slots: int
    x_dtype: torch.dtype = torch.float32
    v_dtype: torch.dtype = torch.float32
    stage: str = "euler"
    frozen: int = 0
    mask: str = ""
    per_position: bool = False
    layout: str = "dense"

    def __str__(self) -> str:
        """An id such as ``B1-H16-A200-fp32-bf16-euler``."""
        short = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        sizes = f"B{self.rows}-H{self.positions}-A{self.slots}"
        words = [sizes, short[self.x_dtype], short[self.v_dtype], self.stage]
        words += [f"frozen{self.frozen}"] * bool(self.frozen) + [f"mask{self.mask}"] * bool(
            self.mask
        )
        words += ["per_position"] * self.per_position
        words += [self.layout.replace(" ", "_")] * (self.layout != "dense")
        return "-".join(words)


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

CASES = (
    Case(1, 16, 200, v_dtype=BF16),
    Case(1, 16, 200, v_dtype=BF16, mask="A", frozen=5, per_position=True),
    Case(2, 50, 32, v_dtype=BF16, frozen=10),
    Case(3, 50, 32, stage="heun", mask="BA", frozen=50, per_position=True),
    Case(5, 7, 13, stage="midpoint_half", mask="A"),
    Case(5, 7, 13, stage="midpoint", v_dtype=F16),
    Case(4, 9, 17, stage="heun_predict", frozen=3, layout="padded"),
    Case(4, 9, 17, stage="heun", v_dtype=BF16, mask="BA", layout="slots apart", frozen=4),
    Case(3, 5, 130, layout="slots apart", mask="A", per_position=True),
    Case(2, 3, 31, x_dtype=BF16, v_dtype=BF16, mask="A"),
    Case(2, 3, 64, x_dtype=BF16, v_dtype=BF16, stage="heun", frozen=2),
    Case(2, 3, 33, x_dtype=F16, v_dtype=F16, stage="heun", mask="BA"),
    Case(2, 3, 33, x_dtype=F16, v_dtype=F32, frozen=1),
    Case(2, 3, 8, x_dtype=BF16, v_dtype=F32, per_position=True, frozen=1),
    Case(1, 1, 1),
    Case(0, 4, 8),
    Case(2, 0, 8),
    Case(2, 4, 0, per_position=True, frozen=2),
)
BENCH = (
    Case(1, 16, 200, v_dtype=BF16),
    Case(64, 16, 200, v_dtype=BF16, mask="A"),
    Case(64, 50, 32, v_dtype=BF16, frozen=10),
    Case(4096, 50, 32, v_dtype=BF16),
    Case(4096, 50, 32, v_dtype=F32, stage="heun"),
    Case(4096, 16, 200, v_dtype=BF16, mask="A", frozen=5, per_position=True),
)


def make_inputs(case: Case, generator: torch.Generator) -> dict[str, Any]:
    """Random arguments of ``ode_step`` on the generator's device, by name."""
    device = generator.device
    b, h, a = case.rows, case.positions, case.slots

    def chunk(dtype: torch.dtype) -> Tensor:
        return _chunk(case, dtype, generator)

    inputs: dict[str, Any] = {
        "x": chunk(case.x_dtype),
        "v": chunk(case.v_dtype),
        "tau": torch.rand((b, h) if case.per_position else b, generator=generator, device=device),
        "dtau": torch.rand(b, generator=generator, device=device),
        "stage": case.stage,
    }
    if STAGES[case.stage].c0:
        inputs["v0"] = chunk(case.v_dtype)
    if case.frozen:
        inputs["frozen"] = chunk(case.x_dtype)
        lengths = torch.randint(0, case.frozen + 1, (b,), generator=generator, device=device)
        inputs["frozen_len"] = lengths.to(torch.int32)
    if case.mask:
        shape = (a,) if case.mask == "A" else (b, a)
        inputs["slot_mask"] = torch.rand(shape, generator=generator, device=device) < 0.7
    return inputs


def _chunk(case: Case, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    b, h, a = case.rows, case.positions, case.slots
    shape = {"dense": (b, h, a), "padded": (b, h, a + 3), "slots apart": (b, h, 2 * a)}[case.layout]
    full = torch.randn(shape, generator=generator, device=generator.device).to(dtype)
    return full[..., ::2] if case.layout == "slots apart" else full[..., :a]


def plain_ode_step(
    x: Tensor,
    v: Tensor,
    tau: Tensor,
    dtau: Tensor,
    stage: str,
    v0: Tensor | None = None,
    frozen: Tensor | None = None,
    frozen_len: Tensor | None = None,
    slot_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """What one writes in plain PyTorch: the arithmetic in x's own dtype."""
    c = STAGES[stage]
    step = dtau.to(x.dtype)[:, None, None]
    slope = v.to(x.dtype) if v0 is None else c.c0 * v0.to(x.dtype) + c.c1 * v.to(x.dtype)
    x_next = x + (c.c1 * step if v0 is None else step) * slope
    if slot_mask is not None:
        x_next = torch.where(slot_mask[..., None, :], x_next, x)
    tau_next = tau + c.c_tau * (dtau if tau.ndim == 1 else dtau[:, None])
    if frozen is not None and frozen_len is not None:
        leading = torch.arange(x.shape[1], device=x.device) < frozen_len[:, None]
        x_next = torch.where(leading[..., None], frozen, x_next)
        if tau.ndim == 2:
            tau_next = tau_next.masked_fill(leading, 1.0)
    return x_next, tau_next


def traffic(case: Case) -> int:
    """Bytes that the mathematics must move: x and v (and v0) read, x_next written."""
    element = 2 * case.x_dtype.itemsize
    element += case.v_dtype.itemsize * (2 if STAGES[case.stage].c0 else 1)
    return case.rows * case.positions * case.slots * element


def written(case: Case) -> int:
    """Those of them that are written."""
    return case.rows * case.positions * case.slots * case.x_dtype.itemsize


def operations(case: Case) -> int:
    """Additions and multiplications: x + s·v, and c0·v0 + c1·v before it where there is v0."""
    each = 5 if STAGES[case.stage].c0 else 2
    return case.rows * case.positions * case.slots * each
