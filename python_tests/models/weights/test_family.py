"""What the readers of all families share."""

from pathlib import Path

import torch

from vlakern.models.presets import preset
from vlakern.models.vla import VLA
from vlakern.models.weights.family import native_shapes, peek, weights_path


def test_shapes_are_those_of_the_model() -> None:
    """Of the full-size models too, without memory for their weights."""
    there = VLA(preset("tiny-pi05")).state_dict()
    assert native_shapes(preset("tiny-pi05")) == {k: tuple(w.shape) for k, w in there.items()}
    numbers = sum(torch.Size(shape).numel() for shape in native_shapes(preset("pi0")).values())
    assert 3.2e9 < numbers < 3.6e9


def test_one_file_comes_before_an_index(tmp_path: Path) -> None:
    """The index stands for its files where there is no single one."""
    one, index = tmp_path / "model.safetensors", tmp_path / "model.safetensors.index.json"
    assert weights_path(tmp_path) == one
    index.touch()
    assert weights_path(tmp_path) == index
    one.touch()
    assert weights_path(tmp_path) == one


def test_peeking_finds_nothing_in_what_is_no_object(tmp_path: Path) -> None:
    """A family is told by keys; a list, a broken file and none have no keys."""
    path = tmp_path / "config.json"
    assert peek(path) == {}
    for text, found in (("[1]", {}), ("{", {}), ('{"type": "pi0"}', {"type": "pi0"})):
        path.write_text(text)
        assert peek(path) == found
