"""The programs of prefixes and of integration: of which calls they consist."""

from types import ModuleType
from typing import Any

import pytest

from vlakern.ops.action_embed import BoundEmbed
from vlakern.ops.linear import BoundLinear
from vlakern.ops.linear.with_norm import BoundLinearNorm
from vlakern.ops.norm import BoundNorm
from vlakern.ops.ode_step import BoundStep
from vlakern.ops.qkv_prep import BoundPrep
from vlakern.ops.shared_attention import BoundAttention

LAYER = (BoundLinear, BoundPrep, BoundAttention, BoundLinearNorm, BoundLinear, BoundLinearNorm)


def program(engine: Any, name: tuple[str, int]) -> list[Any]:
    return list(engine.graphs._programs[name])


@pytest.mark.parametrize(("solver", "stages"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_an_integration_is_the_same_calls_again(
    lab: ModuleType, device_lab: ModuleType, solver: str, stages: int
) -> None:
    """Six calls in a layer, five around the layers of an evaluation; the first step reads the
    noise, and so a replay begins from what was sent, however often it is made."""
    scene = lab.Scene("tiny", steps=3, solver=solver).only(0)
    engine = device_lab.device_engine(scene, "fp32")
    runs = program(engine, ("integrate", 1))[2:]
    layers, per = scene.config.mot.layers, 5 + 6 * scene.config.mot.layers
    assert len(runs) == 3 * stages * per
    first, second = runs[:per], runs[per : 2 * per]
    assert [type(one) for one in first[2:-2]] == [BoundNorm, *LAYER * layers]
    assert all(a is b for a, b in zip(first[2:-2], second[2:-2], strict=True))
    assert isinstance(first[1], BoundEmbed)
    noise = engine._chunk.device["noise"].data_ptr()
    steps = [one for one in runs if isinstance(one, BoundStep)]
    assert [one.tensors.x.data_ptr() == noise for one in steps] == [
        i < stages for i in range(3 * stages)
    ]
    embeds = [one for one in runs if isinstance(one, BoundEmbed)]
    assert [one.tensors.x.data_ptr() == noise for one in embeds].count(True) == 1
    written = {one.tensors.x_out.data_ptr() for one in steps}
    assert noise not in written


def test_the_last_layer_of_a_prefix_makes_keys_and_values_alone(
    lab: ModuleType, device_lab: ModuleType
) -> None:
    """Both experts: product and preparation; no attention and nothing after it."""
    scene = lab.Scene("tiny").only(0)
    engine = device_lab.device_engine(scene, "fp32")
    runs = program(engine, ("prefix", engine.sizes.tokens[-1]))
    assert [type(one) for one in runs[-4:]] == [*LAYER[:2]] * 2
    attentions = [one for one in runs if isinstance(one, BoundAttention)]
    assert len(attentions) == scene.config.mot.layers - 1
    width = scene.config.mot.kv_heads * scene.config.mot.head_dim
    assert runs[-4].tensors.weights.n == 2 * width
