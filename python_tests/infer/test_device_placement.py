"""Where the device engine's tensors are: on the device, all of them, without a device to look at.

On torch's meta device nothing is computed, but a tensor of the CPU among its own is an error.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from vlakern.infer import device_calls, device_experts, device_images, device_stages, packing
from vlakern.infer.buffers import Limits
from vlakern.infer.graph import run_all
from vlakern.infer.graph_engine import GraphEngine
from vlakern.models import VLA, preset
from vlakern.ops.linear import PackedLinear
from vlakern.ops.shared_attention import KvEnd

OPS = {
    device_calls: ("linear_out", "norm_out", "gated_mlp_out", "linear_norm_out"),
    device_experts: ("qkv_prep_out",),
    device_stages: ("action_embed_out", "action_unembed_out", "ode_step_out"),
    device_images: ("image_prep_out",),
}

FAMILIES = ("tiny-pi0", "tiny-pi05", "tiny-smolvla")


def places(value: Any) -> set[str]:
    """Device types of all tensors in arguments of an op."""
    if isinstance(value, Tensor):
        return {value.device.type}
    if isinstance(value, PackedLinear):
        return places(value.data)
    if isinstance(value, KvEnd):
        return places([one for one in vars(value).values() if isinstance(one, Tensor)])
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return set()
    return {place for one in value for place in places(one)}


class Recorder:
    """Runs what is recorded: copies and gathers are real, ops do nothing."""

    def warm_up(self, program: Any) -> None:
        run_all(program)

    def record(self, program: Any) -> Any:
        return lambda: run_all(program)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("name", ["tiny", "metaworld-small", *FAMILIES, "pi05", "smolvla"])
def test_everything_is_on_the_device(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: str
) -> None:
    """Weights, tables, buffers, and every argument of every op of every program."""
    seen: list[set[str]] = []

    def op(*args: Any, **named: Any) -> Any:
        seen.append(places([args, named]))
        return lambda: None

    for module, names in OPS.items():
        for one in names:
            monkeypatch.setattr(module, one, op)
    monkeypatch.setattr(device_calls, "shared_attention_out", op)
    # A value of the meta device cannot be looked at.
    monkeypatch.setattr(packing.Packer, "raw", lambda self, name: self._weights(name))
    config = preset(name)
    with torch.device("meta"):
        weights = VLA(config).requires_grad_(False).state_dict()
    model = packing.pack_model(config, weights.__getitem__, dtype, isa="rows")
    assert places([*model.matrices.values(), *model.tensors.values()]) == {"meta"}
    limits = Limits(2, 4, 100, 4)
    engine = GraphEngine(
        model, limits, steps=2, solver="heun", image_sizes=[(30, 40)], recorder=Recorder()
    )
    assert places(engine.buffers.tensors) == {"meta"}
    for size in list(engine.graphs._programs):
        engine.graphs.run(size)
    assert len(seen) > 100
    assert [one for one in seen if one != {"meta"}] == []
