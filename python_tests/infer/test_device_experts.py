"""The layers of both experts as calls: which there are in each kind of layer."""

from types import ModuleType
from typing import Any

import pytest
import torch

from vlakern.infer.device_experts import Modulations, gather
from vlakern.infer.graph_engine import GraphEngine
from vlakern.infer.packing import modulation_table, pack_model
from vlakern.ops.linear import BoundLinear
from vlakern.ops.linear.with_norm import BoundLinearNorm
from vlakern.ops.norm import BoundNorm
from vlakern.ops.qkv_prep import BoundPrep
from vlakern.ops.shared_attention import BoundAttention
from vlakern.testing import assert_accurate

LAYER = (BoundLinear, BoundPrep, BoundAttention, BoundLinearNorm, BoundLinear, BoundLinearNorm)


def test_gathered_rows() -> None:
    """``out[i] = table[rows[i]]``, again after the rows have changed."""
    table, rows, out = torch.arange(12.0).view(4, 3), torch.tensor([2, 0]).int(), torch.empty(2, 3)
    run = gather(table, rows, out)
    assert torch.equal(out, table[[2, 0]])
    rows.copy_(torch.tensor([3, 3]))
    run()
    assert torch.equal(out, table[[3, 3]])


def test_a_norm_takes_the_gate_of_the_one_before() -> None:
    """Scale and shift are its own; all are views of the table, so that nothing is copied."""
    table = torch.arange(2 * 5 * 3 * 4.0).view(2, 5, 3, 4)
    group, added = torch.zeros(3).int(), torch.zeros(3, 4)
    found = Modulations(table, group, added).of(2)
    assert torch.equal(found.scale, table[:, 2, 0])
    assert torch.equal(found.shift, table[:, 2, 1])
    assert torch.equal(found.gate, table[:, 1, 2])
    memory = table.untyped_storage().data_ptr()
    assert {one.untyped_storage().data_ptr() for one in found[:3]} == {memory}


def programs(device_lab: Any, lab: Any, name: str) -> tuple[Any, list[Any], list[Any]]:
    """An engine for one chunk, and what its prefill and its integration consist of."""
    engine = device_lab.device_engine(lab.Scene(name).only(0), "fp32")
    prefix = engine.graphs._programs["prefix", engine.sizes.tokens[-1]]
    return engine, list(prefix), list(engine.graphs._programs["integrate", 1])


def test_modulations_take_no_call_of_their_own(lab: ModuleType, device_lab: ModuleType) -> None:
    """As many calls in an evaluation as without them: the copy of its times is in the place of the
    gather of the time table, and a layer's norms read their rows of the table themselves."""
    engine, _, runs = programs(device_lab, lab, "tiny-pi05")
    mot, steps = engine.model.config.mot, 4
    per = 5 + 6 * mot.layers
    assert len(runs[2:]) == steps * per
    assert [type(one) for one in runs[4 : 2 + per - 2]] == [BoundNorm, *LAYER * mot.layers]
    norms = [one for one in runs[2 : 2 + per] if isinstance(one, BoundLinearNorm)]
    table = modulation_table(engine.model, steps, "euler")
    for place, one in enumerate(norms, start=1):
        assert one.adaptive is not None
        assert torch.equal(one.adaptive.scale, table[:, place, 0])
        assert one.adaptive.row_group.data_ptr() == engine.buffers.group.data_ptr()


def test_layers_in_which_actions_see_the_prefix_alone(
    lab: ModuleType, device_lab: ModuleType
) -> None:
    """No key of the chunk, queries from angles of their own, and nothing else differs."""
    engine, prefix, runs = programs(device_lab, lab, "tiny-smolvla")
    mot = engine.model.config.mot
    layers = runs[2 + 3 : 2 + 3 + 6 * mot.layers]
    assert [type(one) for one in layers] == [*LAYER * mot.layers]
    attentions = [one for one in layers if isinstance(one, BoundAttention)]
    assert [len(one.tensors.k) > 0 for one in attentions] == [True, False, True, False]
    widths = [one.tensors.weights.n for one in layers[:: len(LAYER)]]
    q, kv = mot.q_heads * mot.head_dim, mot.kv_heads * mot.head_dim
    assert widths == [q + 2 * kv, q, q + 2 * kv, q]
    # Of the last layer of the prefix: keys and values, and both once more.
    kinds = [BoundLinear, BoundPrep, BoundLinear, BoundLinear]
    assert [type(one) for one in prefix[-4:]] == kinds
    assert [one.tensors.weights.k for one in prefix[-2:]] == [kv, kv]


@pytest.mark.parametrize("name", ["tiny-pi05", "tiny-smolvla"])
def test_a_prefix_without_states_of_the_action_expert_has_one_stream(
    lab: ModuleType, device_lab: ModuleType, name: str
) -> None:
    """Its layers are those of the semantic expert alone."""
    _, prefix, _ = programs(device_lab, lab, name)
    attentions = sum(isinstance(one, BoundAttention) for one in prefix)
    assert sum(isinstance(one, BoundLinearNorm) for one in prefix) == 2 * attentions


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tiny-pi0", "tiny-pi05", "tiny-smolvla"])
def test_gpu_replays_of_other_kinds_are_accurate(
    lab: ModuleType, device_lab: ModuleType, name: str
) -> None:
    """The 2x rule in bf16 for recorded programs on a GPU, with frozen positions and masked slots.

    Not among the tests before the engine's timing: there each model's actions are compared anyway.
    """
    scene, weights = lab.Scene(name).only(3), lab.network(name).state_dict()
    config = scene.config
    model = pack_model(config, lambda key: weights[key].cuda(), "bf16", isa="rows")
    how = {"steps": config.steps, "solver": config.solver}
    engine = GraphEngine(model, scene.limits(), **how)
    assert engine.graphs.why_eager is None
    found = device_lab.run_device(engine, scene, 1, True)
    exact, plain = (
        lab.run_network(scene, dtype, 1, True) for dtype in (torch.float64, torch.bfloat16)
    )
    for part in device_lab.PARTS:
        one, right, usual = (getattr(made, part) for made in (found, exact, plain))
        assert_accurate(one.cpu(), right, usual.to(one.dtype), part)
