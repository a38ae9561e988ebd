"""The engine's calls: what they accept, what they refuse, and that a refusal leaves no trace."""

from types import ModuleType

import pytest
import torch

from vlakern.errors import InputError
from vlakern.infer.engine import Engine


def engine_for(lab: ModuleType, scene, dtype: str = "fp32", **changes) -> Engine:
    limits = scene.limits()
    sizes = {
        "max_batch": limits.observations,
        "max_views": 2,
        "max_prefix": limits.tokens // limits.observations + 1,
        "max_candidates": 3,
        "threads": 1,
    }
    return Engine(lab.packed(scene.name, dtype), **(sizes | changes))


def test_act_is_the_calls_it_consists_of(lab: ModuleType) -> None:
    """prepare, prefill and integrate one by one give the bits of act."""
    scene = lab.Scene("tiny")
    engine, images, batch = engine_for(lab, scene), scene.images(), without_pixels(scene)
    found = engine.act(images, batch, scene.noise(2), n=2)
    engine.prepare(images)
    prefix = engine.prefill(batch)
    assert torch.equal(engine.integrate(prefix, scene.noise(2), n=2), found)


def without_pixels(scene):
    import dataclasses

    batch = scene.batch()
    return dataclasses.replace(batch, pixels_V3SS=torch.empty(scene.views, 3, 0, 0))


def test_a_refused_prefix_says_that_it_was_overwritten(lab: ModuleType) -> None:
    """A prefill ends the prefix before it; a clone lasts."""
    scene = lab.Scene("tiny")
    engine = engine_for(lab, scene)
    first = engine.prefill(scene.batch())
    found, kept = engine.integrate(first, scene.noise()), first.clone()
    engine.prefill(scene.only(1).batch())
    with pytest.raises(InputError, match=r"this prefix was overwritten.*clone"):
        engine.integrate(first, scene.noise())
    assert torch.equal(engine.integrate(kept, scene.noise()), found)
