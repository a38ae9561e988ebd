"""Bits of the ops that are bound by memory: 250 repeats, and one and two threads, give the same."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vlakern import ops
from vlakern.ops.action_decode.cases import bimanual_inputs
from vlakern.ops.flow_loss import cases as flow
from vlakern.ops.image_prep import cases as image
from vlakern.ops.norm import cases as norm
from vlakern.ops.ode_step import cases as ode
from vlakern.ops.qkv_prep import cases as qkv
from vlakern.testing import poisoned_allocations

BF16 = torch.bfloat16
Call = Callable[[], list[Tensor]]


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def norm_call(rng: torch.Generator) -> Call:
    parts = ("weight", "bias", "scale", "shift", "residual", "gate")
    inputs = norm.make_inputs(norm.Case(600, 130, "layer", parts, 3, True, BF16), rng)
    leaves = {n: inputs[n].requires_grad_() for n in norm.FLOAT_NAMES}

    def call() -> list[Tensor]:
        found = ops.norm(**inputs | leaves, backend="cpu")
        seeds = [torch.ones_like(x) for x in found]
        return [*found, *torch.autograd.grad(found, list(leaves.values()), seeds)]

    return call


def qkv_prep_call(rng: torch.Generator) -> Call:
    inputs = qkv.make_inputs(qkv.Case((150, 51), 6, 2, 64, BF16), rng)
    leaves = [one.requires_grad_() for one in qkv.flat(inputs)]

    def call() -> list[Tensor]:
        found = ops.qkv_prep(**inputs, backend="cpu")
        seeds = [torch.ones_like(x) for x in found]
        return [*found, *torch.autograd.grad(found, leaves, seeds)]

    return call


def flow_loss_call(rng: torch.Generator) -> Call:
    case = replace(flow.BENCH[0], samples=32)
    inputs = flow.make_inputs(case, rng)
    given = flow.loss_arguments(case, inputs)
    velocity = given["velocity"].requires_grad_()

    def call() -> list[Tensor]:
        mixed = ops.flow_mix(**flow.mix_arguments(case, inputs), backend="cpu")
        loss = ops.flow_loss(**given, backend="cpu")
        return [*mixed, loss[None], *torch.autograd.grad(loss, velocity)]

    return call


def image_prep_call(rng: torch.Generator) -> Call:
    kinds = ("bilinear_antialias", "bicubic_antialias", "bilinear")
    cases = [image.Case(2, 90, 120, (56, 56), "letterbox", one, 14, BF16) for one in kinds]
    images = image.make_inputs(cases[0], rng)
    return lambda: [ops.image_prep(images, **one.settings, backend="cpu") for one in cases]


def ode_step_call(rng: torch.Generator) -> Call:
    inputs = ode.make_inputs(replace(ode.BENCH[-1], rows=256), rng)
    return lambda: list(ops.ode_step(**inputs, backend="cpu"))


def action_decode_call(rng: torch.Generator) -> Call:
    inputs = bimanual_inputs(16, "eef_delta", rng)
    return lambda: [ops.action_decode(**inputs, backend="cpu")]


@pytest.mark.parametrize(
    "make",
    [
        norm_call,
        qkv_prep_call,
        flow_loss_call,
        image_prep_call,
        ode_step_call,
        action_decode_call,
    ],
)
def test_repeats_and_threads(make: Callable[[torch.Generator], Call], rng: torch.Generator) -> None:
    """250 calls, on one thread and on two in turn, give the bits of the first."""
    call = make(rng)
    first = call()
    for repeat in range(250):
        torch.set_num_threads(1 + repeat % 2)
        with poisoned_allocations():
            found = call()
        for one, other in zip(first, found, strict=True):
            bits = [x.detach().contiguous().view(torch.uint8) for x in (one, other)]
            assert torch.equal(*bits), f"repeat {repeat}"
