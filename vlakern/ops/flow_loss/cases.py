"""The cases of ``flow_mix`` and ``flow_loss``, for tests and benchmarks alike.

Chunks and widths: 16 positions of the 200-slot unified vector (rethink), 50 x 32 (pi0, pi0.5,
SmolVLA), 8 x 4 (metaworld-small), and odd ones. Letters: B samples, S rows of each, H, A.
"""

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlakern.ops.flow_loss.philox import NOISE, row_words

__all__ = [
    "BENCH",
    "CASES",
    "FACES",
    "Case",
    "draw_case",
    "loss_arguments",
    "make_inputs",
    "mix_arguments",
    "operations",
    "plain_loss",
    "plain_mix",
    "plain_noise",
    "traffic",
    "written",
]

FACES = ("mix", "loss", "step")


@dataclass(frozen=True)
class Case:
    """One training step's ends.

    Attributes:
        dtype: of x and of the velocity.
        noise: ``drawn``, ``addressed`` (row ids of 64 bits) or ``given``.
        mask: ``""``, ``float32`` or ``bool``.
        groups: embodiments; 0 gives no group argument.
        tau: ``drawn``, ``R`` or ``RH``.
        layout: ``"dense"``, ``"padded"`` (positions further apart than A) or ``"slots apart"``
            (the slots' stride is not 1), of action, mask, noise and velocity.
    """

    samples: int
    per_sample: int
    positions: int
    slots: int
    dtype: torch.dtype = torch.float32
    noise: str = "drawn"
    mask: str = "float32"
    groups: int = 0
    weighted: bool = False
    absent_slots: bool = False
    tau: str = "drawn"
    law: str = "beta"
    layout: str = "dense"

    @property
    def rows(self) -> int:
        """R = B · S."""
        return self.samples * self.per_sample

    def __str__(self) -> str:
        """An id such as ``B64-S4-H16-A200-bf16-drawn``."""
        short = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        sizes = f"B{self.samples}-S{self.per_sample}-H{self.positions}-A{self.slots}"
        words = [sizes, short[self.dtype], self.noise, f"mask_{self.mask or 'none'}"]
        words += [f"G{self.groups}"] * bool(self.groups) + ["weighted"] * self.weighted
        words += ["absent"] * self.absent_slots + [f"tau_{self.tau}"] * (self.tau != "drawn")
        words += [self.law] * (self.law != "beta")
        words += [self.layout.replace(" ", "_")] * (self.layout != "dense")
        return "-".join(words)


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16

CASES = (
    Case(2, 3, 16, 200, BF16, absent_slots=True, groups=3),
    Case(3, 2, 50, 32, BF16, mask="bool"),
    Case(2, 4, 8, 4, F32),
    Case(3, 1, 7, 13, F32, "addressed", "bool", 2, True, True, "R", "uniform"),
    Case(2, 2, 5, 31, F16, "given", "float32", 4, tau="RH", absent_slots=True),
    Case(2, 2, 5, 31, F32, "given", "", layout="slots apart", absent_slots=True),
    Case(2, 3, 9, 17, BF16, "drawn", "bool", 3, True, layout="padded", law="logit_normal"),
    Case(1, 5, 6, 33, F32, "addressed", "float32", tau="RH", layout="padded"),
    Case(1, 2, 10, 110, BF16, absent_slots=True, mask="bool", groups=2),
    Case(1, 1, 1, 1),
    Case(1, 1, 1, 64, F16, mask="bool"),
    Case(2, 1, 1, 65, BF16, mask=""),
    Case(0, 1, 4, 8),
    Case(2, 1, 0, 8),
    Case(2, 3, 4, 0, tau="RH", groups=2),
)
BENCH = (
    Case(64, 4, 16, 200, BF16),
    Case(64, 4, 16, 200, BF16, absent_slots=True, groups=4, mask="bool"),
    Case(32, 1, 50, 32, BF16),
    Case(256, 4, 50, 32, BF16),
    Case(64, 4, 8, 4, BF16),
)


def draw_case(seed: int) -> Case:
    """A random small case."""
    pick = random.Random(seed)
    groups = pick.choice((0, 0, 1, 3))
    return Case(
        pick.randrange(4),
        pick.randint(1, 4),
        pick.choice((0, 1, 2, 7, 16)),
        pick.choice((0, 1, 3, 16, 31, 64, 70)),
        pick.choice((F32, BF16, F16)),
        pick.choice(("drawn", "addressed", "given")),
        pick.choice(("", "float32", "bool")),
        groups,
        bool(groups) and pick.random() < 0.5,
        pick.random() < 0.5,
        pick.choice(("drawn", "R", "RH")),
        pick.choice(("uniform", "beta", "logit_normal")),
        pick.choice(("dense", "padded", "slots apart")),
    )


def make_inputs(case: Case, generator: torch.Generator) -> dict[str, Any]:
    """Random arguments of both faces on the generator's device, by name; None where absent."""
    device, b, r = generator.device, case.samples, case.rows
    inputs: dict[str, Any] = {
        "action": _chunk(case, b, F32, generator),
        "velocity": _chunk(case, r, case.dtype, generator),
        "seed": int(torch.randint(2**63 - 1, (), generator=generator, device=device)),
        "noise": _chunk(case, r, F32, generator) if case.noise == "given" else None,
        "rows": None,
        "mask": None,
        "group": None,
        "weights": None,
        "slots": None,
        "tau": None,
    }
    if case.noise == "addressed":
        inputs["rows"] = torch.randint(2**62, (r,), generator=generator, device=device)
    if case.mask:
        kept = _chunk(case, b, F32, generator) < 0.5
        inputs["mask"] = kept if case.mask == "bool" else kept * 1.0
    if case.groups:
        # The last embodiment does not occur.
        most = max(1, case.groups - 1)
        group = torch.randint(most, (b,), generator=generator, device=device)
        inputs["group"] = group.to(torch.int32)
    if case.weighted:
        inputs["weights"] = torch.rand(case.groups, generator=generator, device=device) + 0.1
    if case.absent_slots:
        shape = (b, case.slots)
        inputs["slots"] = (torch.rand(shape, generator=generator, device=device) < 0.7).float()
    if case.tau != "drawn":
        shape = (r,) if case.tau == "R" else (r, case.positions)
        inputs["tau"] = torch.rand(shape, generator=generator, device=device)
    return inputs


def mix_arguments(case: Case, inputs: dict[str, Any]) -> dict[str, Any]:
    """The keywords of ``ops.flow_mix``."""
    names = ("action", "seed", "rows", "noise", "slots", "tau")
    given = {name: inputs[name] for name in names}
    exact = inputs["action"].dtype == torch.float64
    dtype = torch.float64 if exact else case.dtype
    return given | {"law": case.law, "samples": case.per_sample, "dtype": dtype}


def loss_arguments(case: Case, inputs: dict[str, Any]) -> dict[str, Any]:
    """The keywords of ``ops.flow_loss``."""
    names = ("velocity", "action", "seed", "rows", "noise", "slots", "mask", "group", "weights")
    return {name: inputs[name] for name in names} | {"groups": max(1, case.groups)}


def _chunk(case: Case, rows: int, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    h, a = case.positions, case.slots
    width = {"dense": a, "padded": a + 3, "slots apart": 2 * a}[case.layout]
    full = torch.randn((rows, h, width), generator=generator, device=generator.device).to(dtype)
    return full[..., ::2] if case.layout == "slots apart" else full[..., :a]


def plain_noise(case: Case, inputs: dict[str, Any]) -> Tensor:
    """The noise ``[R, H, A]`` with Box-Muller in fp32, as one writes it in PyTorch."""
    z = inputs["noise"]
    if z is None:
        rows, elements = inputs["rows"], case.positions * case.slots
        at = torch.arange(case.rows, device=inputs["action"].device) if rows is None else rows
        words = row_words(inputs["seed"], at, NOISE, -(-elements // 64) * 16)
        pairs = []
        for radius, turn in (words[:2], words[2:]):
            u = ((radius >> 8) + 1).float() * 2.0**-24
            angle = (turn >> 8).float() * 2.0**-24 * (2 * torch.pi)
            length = (-2.0 * u.log()).sqrt()
            pairs += [length * angle.cos(), length * angle.sin()]
        stacked = torch.stack([one.unflatten(1, (-1, 16)) for one in pairs], dim=2)
        z = stacked.flatten(1)[:, :elements].reshape(case.rows, case.positions, case.slots)
    if inputs["slots"] is None:
        return z
    return z * inputs["slots"].repeat_interleave(case.per_sample, 0)[:, None]


def plain_mix(case: Case, inputs: dict[str, Any], z: Tensor, tau: Tensor) -> Tensor:
    """x_τ in plain PyTorch, from noise and flow times."""
    share = tau[(...,) + (None,) * (3 - tau.ndim)]
    action = inputs["action"].repeat_interleave(case.per_sample, 0)
    return ((1 - share) * z + share * action).to(case.dtype)


def plain_loss(case: Case, inputs: dict[str, Any], velocity: Tensor, z: Tensor) -> Tensor:
    """The loss in plain PyTorch, from noise."""
    target = inputs["action"].repeat_interleave(case.per_sample, 0) - z
    error = (velocity.float() - target).square()
    mask = torch.ones_like(error)
    if inputs["mask"] is not None:
        mask = inputs["mask"].repeat_interleave(case.per_sample, 0).float()
    if inputs["group"] is None:
        return (error * mask).sum() / (mask.sum() + 1e-8)
    group = inputs["group"].repeat_interleave(case.per_sample, 0)
    losses, weights = [], []
    for g in group.unique().tolist():
        own = group == g
        losses.append((error[own] * mask[own]).sum() / (mask[own].sum() + 1e-8))
        weights.append(inputs["weights"][g] if case.weighted else torch.ones_like(losses[0]))
    if not losses:
        return (error * mask).sum()
    w = torch.stack(weights)
    return (w * torch.stack(losses)).sum() / w.sum()


# Operations of a drawn normal, an instruction that multiplies and adds counting as two. Philox: ten
# rounds for four words, each of two products of 64 bits, whose instruction fills half the lanes (4
# each), and two exclusive ors of three words. Box-Muller for two normals: a logarithm (31), a root,
# cosine (10) and sine (8), and 18 for the uniform numbers, the angle's half turn and the products.
PHILOX = 10 * (2 * 4 + 2) // 4
BOX_MULLER = (31 + 1 + 10 + 8 + 18) // 2


def operations(case: Case, face: str) -> int:
    """Of ``mix``, of ``loss`` (value and gradient, each of which draws the noise), of both.

    A mixture takes 3 an element; error, square and mask 5; the gradient 4.
    """
    count = case.rows * case.positions * case.slots
    normal = 0 if case.noise == "given" else PHILOX + BOX_MULLER
    mix, loss = count * (normal + 3), count * (2 * normal + 9)
    return {"mix": mix, "loss": loss, "step": mix + loss}[face]


def traffic(case: Case, face: str) -> int:
    """Bytes that the mathematics must move: action, mask and velocity read, x and the gradient
    written; the loss reads twice, since its denominators must be known before the gradient."""
    per_sample = case.samples * case.positions * case.slots
    rows, mask = _row_bytes(case), {"": 0, "float32": 4, "bool": 1}[case.mask] * per_sample
    given = case.rows * case.positions * case.slots * 4 if case.noise == "given" else 0
    mix = 4 * per_sample + given + rows
    loss = 2 * (4 * per_sample + mask + given + rows) + rows
    return {"mix": mix, "loss": loss, "step": mix + loss}[face]


def written(case: Case, face: str) -> int:
    """Those of them that are written."""
    return _row_bytes(case) * (2 if face == "step" else 1)


def _row_bytes(case: Case) -> int:
    return case.rows * case.positions * case.slots * case.dtype.itemsize
