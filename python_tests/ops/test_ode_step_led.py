"""ode_step with velocities that are led to decided actions: against the guidance of the solvers."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern import env, ops
from vlakern.errors import InputError, Unsupported
from vlakern.flow.guidance import guided, times_left
from vlakern.flow.solver import evaluation_times
from vlakern.ops.ode_step import Led
from vlakern.ops.ode_step.reference import guidance_curve, ode_step_reference
from vlakern.testing import assert_accurate, generator

WAYS = ["reference", *(["triton"] if env.triton_interpret() else [])]
every_way = pytest.mark.parametrize("backend", WAYS)
F64 = torch.float64


@dataclasses.dataclass
class Problem:
    """A stage of a step; row 0 is not led and has NaN in all that leads, row 3 is led firmly."""

    x: Tensor
    v: Tensor
    v0: Tensor
    at: Tensor
    decided: Tensor
    weights: Tensor
    most: Tensor
    dtau: Tensor
    frozen: Tensor
    frozen_len: Tensor
    slot_mask: Tensor

    def to(self, device: str) -> "Problem":
        return Problem(*(one.to(device) for one in vars(self).values()))


def problem(rows: int, positions: int, slots: int) -> Problem:
    rng = generator(f"led {rows} {positions} {slots}")
    x, v, v0, at, decided, frozen = torch.randn(6, rows, positions, slots, generator=rng)
    weights = torch.randint(0, 3, v.shape, generator=rng) / 2
    decided[weights == 0] = (
        torch.tensor([math.nan, math.inf])
        .repeat(v.numel())[: v.numel()]
        .view(v.shape)[weights == 0]
    )
    most = torch.tensor([0.0, 5.0, 0.5, 1e6, 2.0])[torch.arange(rows) % 5]
    decided[most == 0], weights[most == 0] = math.nan, math.nan
    lengths = torch.randint(0, positions + 1, (rows,), generator=rng, dtype=torch.int32)
    mask = torch.rand(slots, generator=rng) < 0.7
    return Problem(
        x, v, v0, at, decided, weights, most, torch.rand(rows, generator=rng), frozen, lengths, mask
    )


def stepped(p: Problem, stage: str, left: float, backend: str) -> tuple[Tensor, Tensor]:
    """What x becomes, and the velocity."""
    v, x_out = p.v.clone(), torch.full_like(p.x, math.nan)
    ops.ode_step_out(
        p.x,
        v,
        torch.zeros_like(p.dtau),
        p.dtau,
        x_out=x_out,
        tau_out=torch.empty_like(p.dtau),
        stage=stage,
        v0=p.v0 if stage == "heun" else None,
        frozen=p.frozen,
        frozen_len=p.frozen_len,
        slot_mask=p.slot_mask,
        led=Led(p.at, p.decided, p.weights, p.most, left),
        backend=backend,
    )
    return x_out, v


def expected(p: Problem, stage: str, left: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """By ``guided``, row by row as each has its own strength; then the step's definition."""
    rows = []
    for b, most in enumerate(p.most.tolist()):
        at, v = p.at[b : b + 1].to(dtype), p.v[b : b + 1].to(dtype)
        if most == 0:
            rows.append(v)
            continue
        decided, weights = p.decided[b : b + 1], p.weights[b : b + 1]
        led = guided(lambda x, tau, v=v: v, decided, weights, most)
        rows.append(led(at, torch.tensor([1 - left], dtype=dtype)))
    v, given = torch.cat(rows), (p.x.to(dtype), torch.zeros_like(p.dtau).to(dtype))
    v0 = p.v0.to(dtype) if stage == "heun" else None
    rest = (p.frozen.to(dtype), p.frozen_len, p.slot_mask)
    x, _ = ode_step_reference(given[0], v, given[1], p.dtau.to(dtype), stage, v0, *rest)
    return x, v


def check(p: Problem, stage: str, left: float, backend: str) -> None:
    found = stepped(p, stage, left, backend)
    exact, plain = (expected(p, stage, left, dtype) for dtype in (F64, torch.float32))
    for name, one, right, usual in zip(("x", "v"), found, exact, plain, strict=True):
        assert_accurate(one.cpu(), right.cpu(), usual.cpu(), name)
    free = p.most == 0
    assert torch.equal(found[1][free], p.v[free])
    assert not torch.equal(found[1][~free], p.v[~free])


@every_way
@pytest.mark.parametrize("stage", ["euler", "midpoint", "heun_predict", "heun"])
@pytest.mark.parametrize("left", [1.0, 0.75, 0.1])
def test_velocities_are_led(backend: str, stage: str, left: float) -> None:
    """From where they were found; in v itself, for a later stage; rows of 0 read nothing."""
    check(problem(5, 7, 13), stage, left, backend)


@every_way
@pytest.mark.parametrize("shape", [(1, 16, 200), (2, 50, 32), (3, 1, 1), (2, 4, 0)])
def test_any_shape(backend: str, shape: tuple[int, int, int]) -> None:
    """More elements than a tile has, one, and none."""
    p = problem(*shape)
    p.most.fill_(3.0)
    p.decided.nan_to_num_(0.5, 0.5)
    p.weights.nan_to_num_(0.5)
    if p.x.numel():
        check(p, "euler", 0.6, backend)
    else:
        assert stepped(p, "euler", 0.6, backend)[0].shape == p.x.shape


@every_way
def test_without_weight_the_bits_are_those_without_guidance(backend: str) -> None:
    """Also where decided actions are NaN or infinite."""
    p = problem(5, 7, 13)
    p.most.fill_(5.0)
    for decided in (math.nan, math.inf):
        p.weights.zero_()
        p.decided.fill_(decided)
        x, v = stepped(p, "euler", 1.0, backend)
        free, _ = stepped(dataclasses.replace(p, most=torch.zeros(5)), "euler", 1.0, backend)
        assert torch.equal(x, free)
        assert torch.equal(v, p.v)


@pytest.mark.parametrize("solver", ["euler", "midpoint", "heun"])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_times_left_are_those_of_the_evaluations(solver: str, steps: int) -> None:
    """And exactly 0 where nothing is left, so that no rounding is taken for a moment to go."""
    times = evaluation_times(steps, solver).double()
    left = torch.tensor(times_left(steps, solver), dtype=F64)
    torch.testing.assert_close(left, 1 - times, rtol=0, atol=1e-6)
    assert not ((left > 0) & (left < 1e-3)).any()
    assert guidance_curve(1.0) == guidance_curve(0.0) == math.inf
    assert guidance_curve(0.5) == 2.0


@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_native_backends_refuse_it(backend: str) -> None:
    """By name with the reason; the device and dtypes are theirs."""
    sentence = "leads no velocity" if backend == "cpu" else "refuses: "
    with pytest.raises(Unsupported, match=sentence):
        stepped(problem(1, 2, 3), "euler", 0.5, backend)
    assert stepped(problem(1, 2, 3), "euler", 0.5, "auto")[0].shape == (1, 2, 3)


BAD: list[tuple[dict[str, Any], float, str]] = [
    ({"at": torch.zeros(2, 3, 5)}, 0.5, r"at must be \[B, H, A\] = \[2, 3, 4\]"),
    ({"decided": torch.zeros(2, 3, 4).half()}, 0.5, "decided must be torch.float32"),
    ({"weights": torch.zeros(2, 4, 3).mT}, 0.5, "weights must be contiguous"),
    ({"most": torch.zeros(3)}, 0.5, r"most must be \[B\] = \[2\]"),
    ({"v": torch.zeros(2, 3, 4).half()}, 0.5, "v must be torch.float32"),
    ({"at": torch.zeros(2, 3, 4, device="meta")}, 0.5, "at must be on x's device cpu"),
    ({}, 0.0, "left must be above 0 and at most 1, got 0.0"),
    ({}, 1.5, "left must be above 0 and at most 1, got 1.5"),
]


@pytest.mark.parametrize(("changes", "left", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input(changes: dict[str, Any], left: float, message: str) -> None:
    """An argument that does not fit is one sentence."""
    p = dataclasses.replace(problem(2, 3, 4), **changes)
    with pytest.raises(InputError, match=message):
        stepped(p, "euler", left, "reference")


def test_in_interpreter(run_interpreted: Callable[[str], int]) -> None:
    """The Triton kernel obeys every law above in Triton's interpreter."""
    assert run_interpreted(__file__) >= 12


@pytest.mark.gpu
@pytest.mark.parametrize("stage", ["euler", "midpoint", "heun_predict", "heun"])
def test_gpu_velocities_are_led(stage: str) -> None:
    """On the GPU, too."""
    check(problem(5, 7, 13).to("cuda"), stage, 0.75, "triton")
