"""Packed weights: what is folded, how precisely, and what cannot be packed."""

from types import ModuleType

import pytest
import torch

from vlakern.infer.packing import (
    DTYPES,
    pack_arrays,
    pack_model,
)
from vlakern.ops.linear import PackedLinear

CONFIGS = ("tiny", "tiny, scales and full masks", "metaworld-small")


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_products_have_the_dtype_and_small_ones_stay_bf16(
    lab: ModuleType, dtype: str
) -> None:
    """int8 is for the towers' and trunks' products alone; the edges keep bf16 or fp32."""
    model, small = lab.packed("tiny", dtype), "fp32" if dtype == "fp32" else "bf16"
    edges = ("vision.patch", "vision.stem", "state.", "action_in.", "action_out.")
    for name, matrix in model.matrices.items():
        assert matrix.kind == (small if name.startswith(edges) else dtype), name
    assert model.activation_dtype == (torch.float32 if dtype == "fp32" else torch.bfloat16)
    assert model.tensors["embed"].dtype == model.activation_dtype


def test_one_array_at_a_time_is_the_whole_model(lab: ModuleType) -> None:
    """The iterator gives each name once, and `seen` hears them in that order."""
    weights, config = lab.network("tiny").state_dict(), lab.network("tiny").config
    names = [name for name, _ in pack_arrays(config, weights.__getitem__, "bf16")]
    heard: list[str] = []
    model = pack_model(config, weights.__getitem__, "bf16", heard.append)
    assert heard == names
    assert sorted(names) == sorted([*model.matrices, *model.tensors])
    assert len(set(names)) == len(names)
    held = [
        one.data if isinstance(one, PackedLinear) else one
        for one in [*model.matrices.values(), *model.tensors.values()]
    ]
    assert model.nbytes == sum(one.numel() * one.element_size() for one in held)
