"""ode_step on random cases, on every instruction set in turn."""

import random
from typing import Any

import pytest
import torch

from vlakern import ops
from vlakern.ops import _native
from vlakern.ops.ode_step.cases import Case, make_inputs, plain_ode_step
from vlakern.ops.ode_step.reference import STAGES, ode_step_reference
from vlakern.testing import assert_accurate, generator, poisoned_allocations

ISAS: list[str] = _native.native_info()["isas"]
DTYPES = (torch.float32, torch.float32, torch.bfloat16, torch.float16)


def random_case(seed: int) -> Case:
    """Sizes around the vectors' lengths, empty ones among them, and every option."""
    rng = random.Random(seed)
    rows, positions, slots = rng.randint(0, 6), rng.randint(0, 20), rng.randint(0, 70)
    return Case(
        rows,
        positions,
        slots,
        x_dtype=rng.choice(DTYPES),
        v_dtype=rng.choice(DTYPES),
        stage=rng.choice(sorted(STAGES)),
        frozen=rng.choice((0, 0, rng.randint(0, positions))),
        mask=rng.choice(("", "A", "BA")),
        per_position=rng.random() < 0.5,
        layout=rng.choice(("dense", "padded", "slots apart")),
    )


@pytest.mark.skipif(not ISAS, reason="no native kernel")
def test_random_cases(fuzz: range, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values obey the accuracy rule in memory that was poisoned; a failure names its case."""
    for seed in fuzz:
        case, isa = random_case(seed), ISAS[seed % len(ISAS)]
        inputs = make_inputs(case, generator(f"ode_step {seed}"))
        monkeypatch.setenv("VLAKERN_CPU_ISA", isa)
        with poisoned_allocations():
            x_next, tau_next = ops.ode_step(**inputs, backend="cpu")
        exact: dict[str, Any] = {
            name: one.double() if isinstance(one, torch.Tensor) and one.is_floating_point() else one
            for name, one in inputs.items()
        }
        x_exact, tau_exact = ode_step_reference(**exact)
        x_plain, tau_plain = plain_ode_step(**inputs)
        where = f"random_case({seed}) = {case} on {isa}"
        assert_accurate(x_next, x_exact, x_plain, f"x_next of {where}")
        assert_accurate(tau_next, tau_exact, tau_plain, f"tau_next of {where}")
