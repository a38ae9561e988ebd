"""Operations and bytes that benchmarks hold an op's time against, counted by hand."""

import math
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch

from vlakern.ops.action_decode import cases as action_decode
from vlakern.ops.flow_loss import cases as flow_loss
from vlakern.ops.image_prep import cases as image_prep
from vlakern.ops.norm import cases as norm
from vlakern.ops.qkv_prep import cases as qkv_prep
from vlakern.ops.shared_attention import cases as shared_attention
from vlakern.testing import generator

BF16 = torch.bfloat16


def test_norm() -> None:
    """4 rows of 8 with a weight and a residual, in bf16: x, residual, y and h, and the weight."""
    case = norm.Case(4, 8, parts=("weight", "residual"), dtype=BF16)
    assert norm.traffic(case) == 4 * (4 * 8 * 2) + 8 * 2
    assert norm.written(case) == 2 * (4 * 8 * 2)
    assert norm.operations(case) == 4 * 8 * (4 + 2)
    assert norm.traffic(case, True) == 5 * (4 * 8 * 2) + 2 * 8 * 2
    assert norm.written(case, True) == 2 * (4 * 8 * 2) + 8 * 2
    grouped = replace(case, parts=("scale",), groups=2)
    assert norm.traffic(grouped) == 2 * (4 * 8 * 2) + 2 * 8 * 2


def test_qkv_prep() -> None:
    """3 tokens, 2 heads and 1 group of 4: 4 heads in, 4 out, cos and sin of half the width."""
    case = qkv_prep.Case((2, 1), 2, 1, 4, BF16, None)
    assert qkv_prep.traffic(case) == 3 * (4 * 4 * 2 + 4 * 4 * 2 + 2 * 2 * 4)
    assert qkv_prep.written(case) == 3 * 4 * 4 * 2
    assert qkv_prep.operations(case) == 3 * 3 * 4 * 3


def test_shared_attention() -> None:
    """Two queries that see 3 and 4 of 3 + 1 keys: 7 pairs, 2 products forward, 5 backward."""
    case = shared_attention.Case("by hand", 2, 1, 8, ((1, 1),), (2,), (0,))
    given = shared_attention.make(case, generator("by hand"), BF16)
    assert case.pairs == 3 + 4
    assert shared_attention.operations(case) == 2 * 2 * 7 * 2 * 8
    assert shared_attention.operations(case, True) == 5 * 2 * 7 * 2 * 8
    assert shared_attention.traffic(given) == 2 * (2 * 4 * 8 + 2 * (2 * 2 * 8))
    assert shared_attention.written(given) == 2 * (2 * 2 * 8)


def test_image_prep_bilinear() -> None:
    """2 points an output along each axis that changes; whole images where none does."""
    case = image_prep.Case(1, 4, 8, (2, 4), "stretch", "bilinear")
    assert image_prep.operations(case) == 2 * 3 * (4 * 4 * 2 + 4 * 2 * 2)
    assert image_prep.operations(replace(case, size=(4, 8))) == 0
    assert image_prep.traffic(case) == 4 * 8 * 3 + 2 * 4 * 3 * 4
    assert image_prep.written(case) == 2 * 4 * 3 * 4


def weights_by_hand(half: float, inputs: int, outputs: int) -> int:
    """How many inputs lie strictly inside the filter of each output, summed."""
    scale = inputs / outputs
    wide = half * max(1.0, scale)
    centres = [(i + 0.5) * scale for i in range(outputs)]
    return sum(abs(j + 0.5 - c) < wide - 1e-9 for c in centres for j in range(inputs))


@pytest.mark.parametrize(
    ("filter", "half"), [("bilinear_antialias", 1.0), ("bicubic_antialias", 2)]
)
def test_image_prep_antialiased(filter: str, half: float) -> None:
    """Three byte products for each input inside each output's filter, along x before y."""
    case = image_prep.Case(2, 12, 20, (5, 7), "stretch", filter, dtype=BF16)
    along_x, along_y = (weights_by_hand(half, *sides) for sides in ((20, 7), (12, 5)))
    counted = image_prep.operations(case)
    expected = 2 * 3 * 3 * 2 * (12 * along_x + 7 * along_y)
    # A cubic weight is 0 at a distance of one input, which a filter may hit.
    assert counted == expected if half == 1 else 0.9 * expected < counted <= expected


def test_flow_loss() -> None:
    """Each face counts its normals, its arithmetic and its passes over memory; step is both."""
    case = flow_loss.Case(2, 3, 4, 5, BF16, mask="bool")
    rows, samples, normal = 6 * 4 * 5, 2 * 4 * 5, 25 + 34
    assert flow_loss.operations(case, "mix") == rows * (normal + 3)
    assert flow_loss.operations(case, "loss") == rows * (2 * normal + 9)
    assert flow_loss.operations(replace(case, noise="given"), "loss") == rows * 9
    assert flow_loss.traffic(case, "mix") == 4 * samples + 2 * rows
    assert flow_loss.traffic(case, "loss") == 2 * (4 * samples + samples + 2 * rows) + 2 * rows
    for count in (flow_loss.operations, flow_loss.traffic, flow_loss.written):
        assert count(case, "step") == count(case, "mix") + count(case, "loss")


def test_action_decode() -> None:
    """The chunk in fp32 and its tables are read, as many columns written."""
    inputs = action_decode.bimanual_inputs(2, "eef_delta", generator("by hand"))
    chunk = 2 * 16 * 200 * 4
    assert action_decode.written(inputs) == chunk
    assert action_decode.traffic(inputs) > 2 * chunk
    assert action_decode.operations(inputs) == 2 * 16 * (4 * len(inputs["copies"]) + 125 * 2)


@pytest.mark.parametrize(
    "op", ["linear", "gated_mlp", "action_embed", "action_unembed", "ode_step"]
)
def test_what_is_written_is_a_part(op: str) -> None:
    """Every benchmarked case writes something and reads more than nothing."""
    cases: Any = import_module(f"vlakern.ops.{op}.cases")
    for case in cases.BENCH:
        assert 0 < cases.written(case) < cases.traffic(case), case
        assert cases.operations(case) > 0
        assert math.isfinite(cases.operations(case))
