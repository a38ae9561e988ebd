"""Weights that are drawn: the same every time, sensible in size, packed once."""

from pathlib import Path

import pytest
import torch

from vlakern.bench import weights
from vlakern.bench.weights import RandomWeights, packed_random
from vlakern.models.presets import preset
from vlakern.models.vla import VLA

TINY = preset("tiny")


def test_every_tensor_of_the_model() -> None:
    """Names and shapes are those of the network's state dict."""
    drawn = RandomWeights(TINY, 0)
    with torch.device("meta"):
        state = VLA(TINY).state_dict()
    assert drawn.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert all(drawn(name).shape == tensor.shape for name, tensor in state.items())
    assert drawn.count == sum(tensor.numel() for tensor in state.values())


def test_same_seed_same_numbers() -> None:
    """A tensor does not depend on what was asked for before; another seed gives another one."""
    name = "mot.semantic.layers.1.up_proj.weight"
    first, second, other = RandomWeights(TINY, 3), RandomWeights(TINY, 3), RandomWeights(TINY, 4)
    second("embed_tokens.weight")
    assert torch.equal(first(name), second(name))
    assert not torch.equal(first(name), other(name))
    assert not torch.equal(first(name), first("mot.semantic.layers.0.up_proj.weight"))


def test_products_keep_the_size_of_their_input() -> None:
    """A matrix has about 1 / sqrt(fan_in) as its deviation, a norm's weight lies around 1."""
    drawn = RandomWeights(TINY, 0)
    deviation = float(drawn("mot.semantic.layers.0.down_proj.weight").float().std())
    assert 0.7 < deviation * 96**0.5 < 1.42
    norm = drawn("mot.semantic.norm.weight").float()
    assert 0.8 < float(norm.min()) < float(norm.max()) < 1.2
    assert drawn("vision.patch.weight").dtype == torch.bfloat16


def test_a_tensor_larger_than_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values repeat, in another order than rows."""
    monkeypatch.setattr(weights, "POOL", 1009)
    table = RandomWeights(TINY, 0)("embed_tokens.weight")
    assert table.shape == (512, 64)
    assert torch.isfinite(table).all()
    assert len(table.unique(dim=0)) == 512


def test_large_models_are_packed_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The second call maps the first one's file; another seed has a file of its own."""
    monkeypatch.setenv("VLAKERN_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "SMALL", 0)
    drawn = RandomWeights(TINY, 0)
    first = packed_random(TINY, drawn, "bf16")
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.vlakern")}
    again = packed_random(TINY, RandomWeights(TINY, 0), "bf16")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.vlakern")} == times
    assert len(times) == 1
    for name, one in first.matrices.items():
        assert torch.equal(one.data, again.matrices[name].data)
    packed_random(TINY, RandomWeights(TINY, 1), "bf16")
    assert len(list(tmp_path.rglob("*.vlakern"))) == 2
