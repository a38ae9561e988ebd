"""Speed of flow_mix and flow_loss; nothing is printed while the op is wrong.

A table and JSON lines: ``python benchmarks/ops/bench_flow_loss.py [--device cuda] [--json FILE]``;
how it is timed and beside what is said in ``contest.py`` and ``rivals.py``. Three rows for each
case: ``mix``, ``loss`` (forward and backward) and ``step`` (both). The others do what training does
without the op: torch.randn, the mixture, a stored target and the masked loss; they are checked
with the op's noise and flow times and timed with their own. Under pytest-benchmark: ``pytest
benchmarks/ops/bench_flow_loss.py``.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vlakern import ops
from vlakern.ops.flow_loss.cases import (
    BENCH,
    FACES,
    Case,
    loss_arguments,
    make_inputs,
    mix_arguments,
    operations,
    plain_loss,
    plain_mix,
    plain_noise,
    traffic,
    written,
)
from vlakern.ops.flow_loss.reference import flow_loss_reference
from vlakern.testing import assert_accurate, generator

sys.path.insert(0, str(Path(__file__).parent))
from contest import Entry, How, main, under_pytest
from plain import Plain, Run

EPSILON = 1e-8  # of the denominators


class Ends(nn.Module):
    """Noise, flow times, the mixture and the masked loss of a velocity, in plain PyTorch.

    Without ``noise`` and ``tau`` it draws them. ``loss`` alone keeps the noise of its mixture.
    """

    noise: Tensor | None
    tau: Tensor | None
    slots: Tensor | None

    def __init__(
        self, case: Case, face: str, given: dict[str, Any], noise: Tensor | None, tau: Tensor | None
    ):
        super().__init__()
        self.case, self.face = case, face
        self.action = nn.Buffer(given["action"])
        self.register_buffer("noise", noise)
        self.register_buffer("tau", tau)
        mask = torch.ones_like(given["action"]) if given["mask"] is None else given["mask"]
        self.mask = nn.Buffer(mask.float())
        rows = torch.zeros(case.samples, dtype=torch.int64, device=mask.device)
        group = rows if given["group"] is None else given["group"].long()
        self.group = nn.Buffer(group.repeat_interleave(case.per_sample))
        slots = given["slots"]
        if slots is not None:
            slots = slots.repeat_interleave(case.per_sample, 0)[:, None]
        self.register_buffer("slots", slots)

    def drawn(self) -> Tensor:
        shape = (self.case.rows, self.case.positions, self.case.slots)
        z = self.noise
        if z is None:
            z = torch.randn(shape, device=self.action.device, dtype=self.action.dtype)
        return z if self.slots is None else z * self.slots

    def mix(self, z: Tensor, action: Tensor) -> Tensor:
        tau = self.tau
        if tau is None:
            u = torch.rand(self.case.rows, device=z.device, dtype=z.dtype)
            tau = (0.999 - u ** (1 / 1.5)) / 0.999
        share = tau[:, None, None]
        return (1 - share) * z + share * action.repeat_interleave(self.case.per_sample, 0)

    def loss(self, velocity: Tensor, z: Tensor) -> Tensor:
        action, mask = (
            x.repeat_interleave(self.case.per_sample, 0) for x in (self.action, self.mask)
        )
        wide = torch.float64 if velocity.dtype == torch.float64 else torch.float32
        error = ((velocity.to(wide) - (action - z)).square() * mask).sum((1, 2))
        groups = torch.zeros(max(1, self.case.groups), dtype=wide, device=error.device)
        total = groups.index_add(0, self.group, error)
        kept = groups.index_add(0, self.group, mask.to(wide).sum((1, 2)))
        present = (groups.index_add(0, self.group, torch.ones_like(error)) > 0).to(wide)
        return (present * total / (kept + EPSILON)).sum() / present.sum()

    def forward(self, given: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Of actions if it only mixes, else of velocities."""
        z = self.drawn()
        if self.face == "mix":
            return self.mix(z, given)
        found = self.loss(given, z)
        return found if self.face == "loss" else (self.mix(z, self.action), found)


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


def fused(case: Case, face: str, inputs: dict[str, Any], backend: str) -> Run:
    """The op on copies of its tensors."""
    own = {n: v.clone() if torch.is_tensor(v) else v for n, v in inputs.items()}
    mixed, given = mix_arguments(case, own), loss_arguments(case, own)
    velocity = given.pop("velocity")

    def mix() -> object:
        return ops.flow_mix(**mixed, backend=backend)

    def loss() -> Tensor:
        v = velocity.detach().requires_grad_()
        found = ops.flow_loss(v, **given, backend=backend)
        return torch.autograd.grad(found, v)[0]

    return {"mix": mix, "loss": loss, "step": lambda: (mix(), loss())}[face]


def make_entry(case: Case, face: str, how: How) -> Entry:
    """Everything that is timed for one face of one case."""
    inputs = make_inputs(case, generator(str(case), how.device))
    tau = ops.flow_mix(**mix_arguments(case, inputs), backend=how.backend)[1]
    z, out = plain_noise(case, inputs), written(case, face)
    kept = z if face == "loss" else None
    plain = Plain(
        {"": Ends(case, face, inputs, kept, None)},
        (inputs["action" if face == "mix" else "velocity"],),
        checked=Ends(case, face, inputs, z, tau),
        passes="forward" if face == "mix" else "both",
    )
    return Entry(
        "flow_loss",
        f"{case} {face}",
        "bf16" if case.dtype == torch.bfloat16 else "fp32",
        partial(check, case, inputs, how.backend),
        {"vlakern": partial(fused, case, face, inputs, how.backend)},
        plain,
        operations(case, face),
        traffic(case, face) - out,
        out,
        peak="fp32",
    )


@pytest.mark.parametrize("case", BENCH, ids=str)
def test_flow_loss(benchmark: Any, case: Case) -> None:
    """One row of pytest-benchmark's table: a training step's two ends."""
    under_pytest(benchmark, partial(make_entry, case, "step"))


if __name__ == "__main__":
    entries = [
        (f"{case} {face}", partial(make_entry, case, face)) for case in BENCH for face in FACES
    ]
    main(str(__doc__), entries, devices=("cpu", "cuda"))
