"""The CPU engine computes what the network says, to the accuracy of its dtype and to the bit."""

from types import ModuleType

import pytest
import torch

from vlakern.testing import assert_accurate

CONFIGS = ("tiny", "tiny, scales and full masks", "tiny, state block last", "metaworld-small")
PARTS = ("image_tokens", "kv", "velocity", "actions")
LOW = {"fp32": torch.float32, "bf16": torch.bfloat16}


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_stage_is_as_accurate_as_torch(lab: ModuleType, name: str, dtype: str) -> None:
    """Image tokens, keys and values of each layer, velocities and actions obey the 2x rule."""
    scene = lab.Scene(name)
    found = lab.run_native(scene.engine(dtype, n=2), scene, n=2)
    exact = lab.run_network(scene, torch.float64, n=2)
    plain = lab.run_network(scene, LOW[dtype], n=2)
    check(found, exact, plain)


def check(found: object, exact: object, plain: object) -> None:
    """Each layer's keys and values and each evaluation's velocity on its own."""
    for part in PARTS:
        one, right, usual = (getattr(made, part) for made in (found, exact, plain))
        usual = usual.to(one.dtype)
        if part in ("image_tokens", "actions"):
            assert_accurate(one, right, usual, part)
            continue
        for i in range(len(one)):
            for j in range(2 if part == "kv" else 1):
                at = (i, j) if part == "kv" else (i,)
                assert_accurate(one[at], right[at], usual[at], f"{part}{list(at)}")
