"""The file of packed weights: written once, mapped after that, and never trusted."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from vlakern.errors import CheckpointError
from vlakern.infer.packed_file import read_packed, write_packed


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_what_is_read_is_what_was_packed(lab: ModuleType, tmp_path: Path, dtype: str) -> None:
    """Every array bit for bit, with its facts; the arrays lie on cache lines."""
    network, model = lab.network("tiny"), lab.packed("tiny", dtype)
    path = tmp_path / "packed"
    write_packed(path, "key", network.config, dtype, network.state_dict().__getitem__)
    found = read_packed(path, "key")
    assert (found.config, found.dtype) == (model.config, dtype)
    assert found.tensors.keys() == model.tensors.keys()
    assert found.matrices.keys() == model.matrices.keys()
    for name, one in model.tensors.items():
        assert torch.equal(found.tensors[name], one), name
        assert found.tensors[name].data_ptr() % 64 == 0
    for name, one in model.matrices.items():
        other = found.matrices[name]
        assert torch.equal(other.data, one.data), name
        assert other.data.data_ptr() % 64 == 0
        facts = ("n", "k", "kind", "gate", "has_bias", "layout", "isa")
        assert [getattr(other, fact) for fact in facts] == [getattr(one, fact) for fact in facts]


def test_another_key_is_stale(lab: ModuleType, tmp_path: Path) -> None:
    """One sentence with the path."""
    network, path = lab.network("tiny"), tmp_path / "packed"
    write_packed(path, "key", network.config, "bf16", network.state_dict().__getitem__)
    with pytest.raises(CheckpointError, match="packed from other weights or by another version"):
        read_packed(path, "other")
