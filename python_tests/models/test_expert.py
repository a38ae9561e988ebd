"""An expert's parts against their formulas."""

import torch

from vlakern.models import preset
from vlakern.models.expert import AdaptiveNorm, Expert, KeyValues, RMSNorm
from vlakern.testing import generator


def drawn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=generator(f"{shape}"))


def test_an_adaptive_norm_is_its_formula() -> None:
    """Rows 0 and 1 have one condition, 2 and 3 the other; the gate before is of what is added."""
    module = AdaptiveNorm(8, 1e-6).double()
    x, residual, gate, condition = drawn(4, 8), drawn(4, 8) + 1, drawn(2, 8) + 2, drawn(2, 8) + 3
    y, h, following = module(x, residual, gate, condition)
    of_row = torch.tensor([0, 0, 1, 1])
    expected = x + gate[of_row] * residual
    torch.testing.assert_close(h, expected)
    scale, shift, after = (condition @ module.dense.weight.T + module.dense.bias).split(8, 1)
    normed = expected / (expected.square().mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(y, normed * (1 + scale[of_row]) + shift[of_row])
    assert torch.equal(following, after)


def test_only_an_adaptive_expert_has_a_condition() -> None:
    """Every norm of it, the last one too; the others have a weight."""
    mot = preset("tiny-pi05").mot
    for expert, kind in ((mot.action, AdaptiveNorm), (mot.semantic, RMSNorm)):
        stack = Expert(mot, expert)
        found = [type(one) for layer in stack.layers for one in layer.children()]
        assert found.count(kind) == 2 * mot.layers
        assert type(stack.norm) is kind
    assert not hasattr(Expert(mot, mot.action).layer(0), "q_norm")


def test_keys_and_values_of_another_expert_are_projected_whole() -> None:
    """All heads of a token together, keys by the one and values by the other matrix."""
    mot = preset("tiny-smolvla").mot
    layer = Expert(mot, mot.action, crosses=True).double().layer(1)
    seen = KeyValues(drawn(3, 2, 16), drawn(3, 2, 16) + 1)
    made = layer.of(seen)
    for one, module, given in (
        (made.k_TGD, layer.k_proj, seen.k_TGD),
        (made.v_TGD, layer.v_proj, seen.v_TGD),
    ):
        expected = given.reshape(3, 32) @ module.weight.T
        torch.testing.assert_close(one, expected.view(3, 2, 16))
    assert layer.k_proj.weight.shape == (32, 32)
    assert Expert(mot, mot.action, crosses=True).layer(0).k_proj.weight.shape == (32, 48)
