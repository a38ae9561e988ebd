"""Which code runs an engine's stages."""

import dataclasses
import warnings
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from vlakern.errors import Unsupported
from vlakern.infer import backends
from vlakern.infer.backends import Plan, graph_refusal, make_stages
from vlakern.infer.buffers import Limits
from vlakern.infer.native_engine import NativeEngine
from vlakern.infer.packing import pack_model
from vlakern.infer.torch_engine import TorchEngine
from vlakern.ops import _native, _torch

PLAN = Plan(Limits(1, 1, 40, 1), steps=1, solver="euler", threads=1)


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Everything is on a GPU of an architecture that can be set; nothing is built."""
    arch = [90]
    monkeypatch.setattr(_torch, "_arch", lambda device: arch[0])
    _torch._key.cache_clear()
    for name in ("GraphEngine", "TorchEngine"):
        monkeypatch.setattr(backends, name, lambda *a, name=name, **k: name)
    yield arch
    _torch._key.cache_clear()


class OnGpu:
    """A network whose weights say that they are on a GPU."""

    def __init__(self, network: Any) -> None:
        self.config = network.config
        weight = SimpleNamespace(device=torch.device("cuda"))
        self.embed_tokens = SimpleNamespace(weight=weight)


def test_on_a_cpu(lab: ModuleType) -> None:
    """A network and its packed weights: the CPU engine; modules only by name."""
    if _native.missing() is not None:
        pytest.skip("no native module")
    network = lab.network("tiny")
    assert isinstance(make_stages(network, PLAN, "auto"), NativeEngine)
    assert isinstance(make_stages(lab.packed("tiny", "bf16"), PLAN, "auto"), NativeEngine)
    assert isinstance(make_stages(network, PLAN, "torch"), TorchEngine)


def test_on_a_gpu(lab: ModuleType, on_a_gpu: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU engine by itself; on an old GPU the modules, and that is said."""
    monkeypatch.setattr(backends, "_packed", lambda model, isa: f"packed for {isa}")
    network: Any = OnGpu(lab.network("tiny"))
    assert make_stages(network, PLAN, "auto") == "GraphEngine"
    assert make_stages(network, PLAN, "torch") == "TorchEngine"
    on_a_gpu[0] = 75
    _torch._key.cache_clear()
    with pytest.warns(RuntimeWarning, match="through torch.*needs sm_80 or newer, .* sm_75"):
        assert make_stages(network, PLAN, "auto") == "TorchEngine"
    with pytest.raises(Unsupported, match="the GPU engine cannot run: needs sm_80 or newer"):
        make_stages(network, PLAN, "graph")
    with pytest.raises(Unsupported, match="the CPU engine cannot run: weights are on cuda"):
        make_stages(network, PLAN, "native")


def test_fp8_needs_a_gpu_that_has_it(on_a_gpu: list[int]) -> None:
    """From sm_89 on; other dtypes from sm_80 on."""
    assert graph_refusal("cuda", "fp8") is None
    on_a_gpu[0] = 86
    _torch._key.cache_clear()
    assert graph_refusal("cuda", "fp8") == "fp8 needs sm_89 or newer, the GPU is sm_86"
    assert graph_refusal("cuda", "int8") is None


def test_weights_go_with_their_engine(lab: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of CPUs and of GPUs are not taken for each other, nor for a network."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    network = lab.network("tiny")
    rows = pack_model(network.config, network.state_dict().__getitem__, "bf16", isa="rows")
    with pytest.raises(Unsupported, match="the GPU engine cannot run: needs an NVIDIA GPU"):
        make_stages(rows, PLAN, "auto")
    with pytest.raises(Unsupported, match="packed weights are for the CPU engine; give the net"):
        make_stages(rows, PLAN, "torch")
    monkeypatch.setattr(backends, "graph_refusal", lambda *args: None)
    with pytest.raises(Unsupported, match="weights are packed for n16; pack them with isa='rows'"):
        make_stages(lab.packed("tiny", "bf16"), PLAN, "graph")
    if _native.missing() is None:
        from vlakern.errors import InputError

        with pytest.raises(InputError, match="is not packed as bf16"):
            make_stages(rows, PLAN, "native")


@pytest.mark.parametrize("name", ["tiny-pi0", "tiny-pi05", "tiny-smolvla"])
def test_networks_of_other_kinds_take_the_gpu_engine(
    lab: ModuleType, on_a_gpu: list[int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """By itself, and nothing is said."""
    monkeypatch.setattr(backends, "_packed", lambda model, isa: f"packed for {isa}")
    network: Any = OnGpu(lab.network(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_stages(network, PLAN, "auto") == "GraphEngine"


def test_what_the_gpu_engine_lacks_runs_through_torch(lab: ModuleType, on_a_gpu: list[int]) -> None:
    """With one sentence; asked for by name the engine refuses with it."""
    tiny = lab.network("tiny")
    vision = dataclasses.replace(tiny.config.vision, final_norm=True)
    network: Any = OnGpu(tiny)
    network.config = dataclasses.replace(tiny.config, vision=vision)
    words = "vision.final_norm before a connector with a norm is not in the GPU engine"
    with pytest.warns(RuntimeWarning, match=f"through torch, .*: {words}"):
        assert make_stages(network, PLAN, "auto") == "TorchEngine"
    with pytest.raises(Unsupported, match=f"the GPU engine cannot run: {words}"):
        make_stages(network, PLAN, "graph")
    with pytest.raises(Unsupported, match=f"cannot run: {words}"):
        make_stages(network, PLAN, "cuda")
