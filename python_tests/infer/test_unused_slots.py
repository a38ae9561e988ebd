"""What a model sees in slots that its robot does not have, at inference."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from vlakern.infer import load
from vlakern.infer.engine import Engine, Prefix
from vlakern.models import VLA, preset
from vlakern.models.tokenizer import fit_tokenizer
from vlakern.models.weights import PolicyFiles, Processing, write
from vlakern.space import VectorStats, robot_and_slots
from vlakern.types import Observation


@pytest.mark.parametrize("unused", ["noise", "zero"])
@pytest.mark.parametrize("steps", [1, 3])
def test_absent_slots_hold_noise_or_nothing_from_start_to_end(
    unused: Literal["noise", "zero"],
    steps: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A Panda fills 7 of 200 slots. With ``zero`` the other 193 are 0 before the first step and
    after any number of them, whatever velocity the network answers; with ``noise`` none is."""
    robot, slots = robot_and_slots("robosuite_panda")
    config = dataclasses.replace(
        preset("tiny"), state_dim=200, action_dim=200, unused_slots=unused, steps=steps
    )
    torch.manual_seed(0)
    stats = VectorStats.units(slots.names())
    parts = robot, slots, slots, Processing(execute=2, frame="eef_relative"), stats, stats
    write(tmp_path / "policy", PolicyFiles(VLA(config), *parts, fit_tokenizer(["lift"], 300)))
    seen: list[Tensor] = []
    integrate = Engine.integrate

    def watched(self: Engine, prefix: Prefix, noise: Tensor, **rest: Any) -> Tensor:
        actions = integrate(self, prefix, noise, **rest)
        seen.extend((noise, actions))
        return actions

    monkeypatch.setattr(Engine, "integrate", watched)
    policy = load(tmp_path / "policy", device="cpu")
    images = {view: np.zeros((28, 28, 3), np.uint8) for view in policy.views}
    state = np.array([0, 0, 0, 0, 0, 0, 1, 0.5], np.float32)
    policy.act(Observation(images, state, "lift"), seed=0)
    mask = torch.from_numpy(policy.space.action_mask)
    assert (int(mask.sum()), len(seen)) == (7, 2)
    for x_RHA in seen:
        absent = x_RHA[..., ~mask]
        assert bool((absent == 0).all()) if unused == "zero" else bool((absent != 0).all())
        assert bool((x_RHA[..., mask] != 0).all())
