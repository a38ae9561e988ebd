"""Ops bound to packed weights, and the memory that they share."""

import dataclasses
from types import ModuleType

import pytest
import torch

from vlakern.errors import InputError
from vlakern.infer.buckets import ladders
from vlakern.infer.device_calls import Attention, Calls, calls_for
from vlakern.ops import _torch
from vlakern.ops.gated_mlp import mlp_workspace_bytes
from vlakern.ops.linear import workspace_bytes
from vlakern.ops.shared_attention import KvEnd, attention_workspace_bytes, triton_launch


@pytest.fixture
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans for 132 multiprocessors, which split small products."""
    pytest.importorskip("triton")
    monkeypatch.setattr(_torch, "processors", lambda device: 132)
    monkeypatch.setattr(triton_launch, "processors", lambda device: 132)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("tiny", "bf16"),
        ("tiny", "fp8"),
        ("tiny", "int8"),
        ("tiny-pi0", "bf16"),
        ("tiny-pi05", "int8"),
        ("tiny-smolvla", "bf16"),
    ],
)
def test_the_workspace_holds_what_every_product_needs(
    lab: ModuleType, device_lab: ModuleType, like_a_gpu: None, name: str, dtype: str
) -> None:
    """Of every matrix at every number of rows that a program has; not by much more."""
    scene = lab.Scene(name)
    model, limits, config = device_lab.packed_rows(name, dtype), scene.limits(4), scene.config
    sizes = ladders(limits)
    found = calls_for(model, limits, sizes, torch.empty(0), "triton").workspace
    assert found is not None
    chunks = [config.chunk * n for n in sizes.rows]
    states = [limits.observations] if config.state == "action" else []
    patches = config.vision.grid**2 + int(config.vision.class_token)
    rows = {
        "vision": [patches * views for views in sizes.views],
        "connector": [config.vision.tokens * views for views in sizes.views],
        "semantic": sizes.tokens,
        "action": [*states, *chunks],
        "state": [limits.observations],
    }
    if config.action_decoder == "linear":  # in two products an op of its own has memory for them
        rows["action_out"] = chunks
    needs, gate = [], {"silu": "silu_gate", "gelu_tanh": "gelu_tanh_gate"}[config.mot.activation]
    for name, one in model.matrices.items():
        first, crosses = name.split(".")[0], ".cross_" in name
        for count in sizes.tokens if crosses else rows.get(first, ()):
            if one.gate:
                down = model.matrices[name.replace("gate_up", "down")]
                needs.append(mlp_workspace_bytes(count, one, down, gate))
            else:
                needs.append(workspace_bytes(count, one, "none"))
    assert max(needs) <= found.numel() <= max(*needs, 256)


def test_memory_that_is_not_there_is_named(
    lab: ModuleType, device_lab: ModuleType, like_a_gpu: None
) -> None:
    """For absurd limits, with what the memory is for."""
    model = device_lab.packed_rows("tiny", "bf16")
    limits = dataclasses.replace(lab.Scene("tiny").limits(), tokens=1 << 30)
    sizes = dataclasses.replace(ladders(limits), tokens=(1 << 30,))
    with pytest.raises(InputError, match=r"needs \d+ MB for workspaces of its products"):
        calls_for(model, limits, sizes, torch.empty(0), "triton")


def test_the_reference_needs_no_workspace(lab: ModuleType, device_lab: ModuleType) -> None:
    """It allocates by itself."""
    model, limits = device_lab.packed_rows("tiny", "bf16"), lab.Scene("tiny").limits()
    assert calls_for(model, limits, ladders(limits), torch.empty(0), "reference").workspace is None


def test_a_split_attention_takes_the_workspace_or_memory_of_its_own(
    device_lab: ModuleType, like_a_gpu: None
) -> None:
    """The shared one where it is large enough, else one for all such attentions."""
    q, k = torch.zeros(16, 4, 16), torch.zeros(2000, 2, 16)
    who = KvEnd(
        torch.tensor([0, 16]), torch.tensor([0, 2000]), torch.full((16,), 2000, dtype=torch.int32)
    )
    attention = Attention(q, k, k, torch.empty_like(q), who)
    need = attention_workspace_bytes(q, k, who)
    assert need >= 2 * 4 * (q.numel() + 64)
    model = device_lab.packed_rows("tiny", "bf16")
    for size, shared in ((need, True), (need - 1, False)):
        workspace = torch.empty(size, dtype=torch.uint8)
        calls = Calls(model, "triton", workspace, torch.empty(0))
        parts = calls._parts(attention)
        assert parts is not None
        assert calls._parts(attention) is parts
        assert (parts is workspace) == shared
        assert parts.numel() >= need
