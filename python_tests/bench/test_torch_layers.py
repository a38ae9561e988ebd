"""The folded layers of the PyTorch baseline against the network's own."""

import torch

from vlakern.bench.torch_layers import Block, Layer, Lazy, normed
from vlakern.bench.weights import RandomWeights
from vlakern.models.mot import MoT, rotary
from vlakern.models.presets import preset
from vlakern.models.vision import VisionTower

CONFIG = preset("metaworld-small")
DRAWN = RandomWeights(CONFIG, 1)


def test_block_is_the_towers() -> None:
    """Folded scales of residuals and attention change nothing."""
    tower = VisionTower(CONFIG.vision, CONFIG.mot.semantic.hidden)
    block = tower.blocks[0]
    block.load_state_dict({n: DRAWN(f"vision.blocks.0.{n}").float() for n in block.state_dict()})
    x = torch.randn(2, 36, 192)
    with torch.no_grad():
        folded = Block(CONFIG.vision, DRAWN, "vision.blocks.0", torch.float32)(x)
        torch.testing.assert_close(folded, block(x), rtol=1e-4, atol=1e-5)


def test_layer_is_the_experts() -> None:
    """Projections before attention and the stream behind it, with folded norms."""
    expert = MoT(CONFIG.mot).action.layers[0]
    source = "mot.action.layers.0"
    expert.load_state_dict({n: DRAWN(f"{source}.{n}").float() for n in expert.state_dict()})
    layer = Layer(CONFIG.mot, DRAWN, source, torch.float32, rest=True)
    x, attention = torch.randn(1, 7, 128), torch.randn(1, 7, 256)
    cos, sin = (one[:, None] for one in rotary(torch.arange(7), 64, CONFIG.mot.rope_theta))
    with torch.no_grad():
        turned, v = layer.project(x, (cos, sin))
        h, _ = expert.input_norm(x[0])  # type: ignore[operator]
        _, k_plain, v_plain = expert.qkv(h)  # type: ignore[operator]
        torch.testing.assert_close(v[0].flatten(1), v_plain, rtol=1e-4, atol=1e-5)
        k, _ = expert.k_norm(k_plain.view(14, 64))  # type: ignore[operator]
        a, b = k.view(7, 2, 64).chunk(2, dim=-1)
        k = torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
        torch.testing.assert_close(turned[0, :, 4:], k, rtol=1e-4, atol=1e-5)
        h, stream = expert.post_norm(x[0], expert.o_proj(attention[0]))  # type: ignore[operator]
        after = stream + expert.mlp(h)  # type: ignore[operator]
        torch.testing.assert_close(layer.advance(x, attention)[0], after, rtol=1e-4, atol=1e-5)


def test_the_last_layer_of_a_prefix_makes_keys_and_values_alone() -> None:
    """Without the rest there is no query and nothing to advance with."""
    whole = Layer(CONFIG.mot, DRAWN, "mot.semantic.layers.3", torch.float32, rest=True)
    last = Layer(CONFIG.mot, DRAWN, "mot.semantic.layers.3", torch.float32, rest=False)
    angles = tuple(one[:, None] for one in rotary(torch.arange(5), 64, 1e4))
    x = torch.randn(1, 5, 192)
    with torch.no_grad():
        turned, v = whole.project(x, (angles[0], angles[1]))
        keys, values = last.project(x, (angles[0], angles[1]))
    torch.testing.assert_close(keys, turned[:, :, 4:])
    torch.testing.assert_close(values, v)
    assert sum(one.numel() for one in last.parameters()) < 0.2 * sum(
        one.numel() for one in whole.parameters()
    )


def test_norm_divides_by_the_root_mean_square() -> None:
    """Of each row, in the dtype of the rows."""
    x = torch.tensor([[3.0, -4.0]]).bfloat16()
    expected = torch.tensor([[3.0, -4.0]]) / 12.5**0.5
    torch.testing.assert_close(normed(x, 0.0), expected.bfloat16())


def test_lazy_layers_are_built_when_asked_for() -> None:
    """Nothing is built before, everything again at each use."""
    made = []
    layers = Lazy(3, lambda i: made.append(i) or i)
    assert made == []
    assert list(layers) == [0, 1, 2]
    assert made == [0, 1, 2]
