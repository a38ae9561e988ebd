"""Conversion to a native directory keeps every bit."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlakern.errors import CheckpointError
from vlakern.models.weights.convert import check_new, distances, skipped, to_native
from vlakern.models.weights.families import open_policy


@pytest.mark.parametrize("kind", ["pi0", "pi05", "smolvla"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_bit_is_kept(
    kind: str, dtype: torch.dtype, goldens: ModuleType, tmp_path: Path
) -> None:
    """Weights and records; what a fold computed is fp32, the rest of the source's dtype."""
    source = goldens.lerobot_directory(tmp_path / kind, kind, dtype)
    told: list[str] = []
    opened = to_native(source, tmp_path / "ours", told.append)
    again = open_policy(tmp_path / "ours")
    assert again.family.name == "vlakern"
    assert set(distances(opened, again).values()) == {0.0}
    assert len(told) == opened.count
    assert again.weights("mot.action.layers.0.up_proj.weight").dtype == dtype
    assert again.weights("embed_tokens.weight").dtype == torch.float32
    assert again.records.config == opened.records.config
    assert again.records.processing == opened.records.processing
    assert again.records.embodiment == opened.records.embodiment
    assert again.records.action_stats.mean == opened.records.action_stats.mean
    assert len(skipped(opened)) == (1 if kind == "smolvla" else 2)
    assert skipped(again) == {}


def test_a_difference_is_found(goldens: ModuleType, tmp_path: Path) -> None:
    """One number of one tensor, relative to the tensor's largest."""
    source = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    opened = to_native(source, tmp_path / "ours")
    weights = load_file(tmp_path / "ours" / "model.safetensors")
    name = "mot.action.norm.weight"
    weights[name][3] += 0.1 * weights[name].abs().max()
    save_file(weights, tmp_path / "ours" / "model.safetensors")
    found = distances(opened, open_policy(tmp_path / "ours"))
    assert found.pop(name) == pytest.approx(0.1, rel=0.15)
    assert set(found.values()) == {0.0}


def test_nothing_is_replaced(goldens: ModuleType, tmp_path: Path) -> None:
    """Least of all the source."""
    source = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    with pytest.raises(CheckpointError, match="exists; name a directory that is not there"):
        to_native(source, source)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="exists; name a directory that is not there"):
        check_new(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    check_new(tmp_path / "empty")


def test_weights_that_are_not_finite_are_refused(goldens: ModuleType, tmp_path: Path) -> None:
    """And nothing is left behind."""
    source = goldens.lerobot_directory(tmp_path / "pi0", "pi0")
    weights = load_file(source / "model.safetensors")
    weights["model.action_in_proj.weight"][0, 0] = float("nan")
    save_file(weights, source / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'model\.action_in_proj\.weight' holds values"):
        to_native(source, tmp_path / "ours")
    assert not (tmp_path / "ours").exists()
