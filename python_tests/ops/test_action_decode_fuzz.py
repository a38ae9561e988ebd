"""action_decode on random cases."""

import random
from typing import Any

import pytest
import torch

from vlakern import ops
from vlakern.ops import _native
from vlakern.ops.action_decode.cases import Case, make_inputs
from vlakern.ops.action_decode.reference import (
    FRAMES,
    KIND_WIDTHS,
    KINDS,
    action_decode_reference,
)
from vlakern.testing import assert_accurate, generator, poisoned_allocations

WORDS = ("bare", *(f"{one}:{other}" for one in KINDS[1:] for other in KINDS[1:]))


def random_case(seed: int) -> Case:
    """Up to three poses of any kinds, copies between them, empty sizes among the others."""
    rng = random.Random(seed)
    frame = rng.choice(FRAMES)
    # A hand without a rotation has no axes of its own.
    words = WORDS if frame.startswith("world") else WORDS[1:]
    poses = tuple(rng.choice(words) for _ in range(rng.randint(0, 3)))
    taken = sum(3 + _rotation_width(word) for word in poses)
    spare = rng.randint(0, 20)
    return Case(
        rng.randint(0, 4),
        rng.randint(0, 12),
        taken + spare,
        frame,
        poses,
        copies=rng.randint(0, spare),
        dtype=rng.choice((torch.float32, torch.float32, torch.bfloat16, torch.float16)),
        layout=rng.choice(("dense", "padded", "slots apart")),
    )


def _rotation_width(word: str) -> int:
    return 0 if word == "bare" else KIND_WIDTHS[KINDS.index(word.split(":")[0])]


@pytest.mark.skipif(not _native.native_info()["isas"], reason="no native kernel")
def test_random_cases(fuzz: range) -> None:
    """Values obey the accuracy rule in memory that was poisoned; a failure names its case."""
    for seed in fuzz:
        case = random_case(seed)
        inputs = make_inputs(case, generator(f"action_decode {seed}"))
        with poisoned_allocations():
            found = ops.action_decode(**inputs, backend="cpu")
        exact: dict[str, Any] = {
            name: one.double() if isinstance(one, torch.Tensor) and one.is_floating_point() else one
            for name, one in inputs.items()
        }
        best, plain = action_decode_reference(**exact), action_decode_reference(**inputs)
        assert_accurate(found, best, plain, f"random_case({seed}) = {case}")
