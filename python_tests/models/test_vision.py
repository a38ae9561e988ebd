"""The vision tower against plain loops, and what its options do."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from vlakern.models import preset
from vlakern.models.config import VisionConfig
from vlakern.models.vision import Block, VisionTower, pixel_shuffle
from vlakern.testing import generator

PLAIN = dataclasses.replace(preset("tiny").vision, layer_scale=0.5)
STEM = VisionConfig(32, 8, hidden=16, layers=1, heads=2, mlp=24, stem=(4, 8))


def tower(config: VisionConfig) -> VisionTower:
    rng = generator("tower")
    model = VisionTower(config, 24)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=rng))
    return model.eval()


def pictures(config: VisionConfig, count: int) -> Tensor:
    shape = (count, 3, config.image_size, config.image_size)
    return torch.rand(shape, generator=generator("pictures")) * 2 - 1


@pytest.mark.parametrize(("grid", "side"), [(4, 2), (6, 3), (6, 1), (6, 6), (2, 2)])
def test_pixel_shuffle_equals_a_loop(grid: int, side: int) -> None:
    """Token (r, c) is the patches of its square, row by row, left to right."""
    x_VNW = torch.randn(2, grid * grid, 3, generator=generator("shuffle"))
    found = pixel_shuffle(x_VNW, side)
    per_side = grid // side
    for r in range(per_side):
        for c in range(per_side):
            patches = [
                x_VNW[:, (r * side + i) * grid + c * side + j]
                for i in range(side)
                for j in range(side)
            ]
            assert torch.equal(found[:, r * per_side + c], torch.cat(patches, dim=1))
    assert found.shape == (2, per_side**2, 3 * side**2)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def plain_block(block: Block, x_NW: Tensor, heads: int, eps: float) -> Tensor:
    """One picture, head by head."""
    h = layer_norm(x_NW, block.norm1.weight, block.norm1.bias, eps)
    q, k, v = (h @ block.qkv.weight.T + block.qkv.bias).chunk(3, dim=-1)
    width = q.shape[-1] // heads
    parts = []
    for i in range(heads):
        part = slice(i * width, (i + 1) * width)
        weights = torch.softmax(q[:, part] @ k[:, part].T / math.sqrt(width), dim=-1)
        parts.append(weights @ v[:, part])
    assert block.scale1 is not None
    assert block.scale2 is not None
    mixed = torch.cat(parts, dim=-1) @ block.proj.weight.T + block.proj.bias
    x_NW = x_NW + block.scale1 * mixed
    h = layer_norm(x_NW, block.norm2.weight, block.norm2.bias, eps)
    h = h @ block.fc1.weight.T + block.fc1.bias
    h = 0.5 * h * (1 + torch.erf(h / math.sqrt(2)))
    return x_NW + block.scale2 * (h @ block.fc2.weight.T + block.fc2.bias)


@torch.no_grad()
def test_tower_equals_plain_formulas() -> None:
    """Patches in raster order, class token first and dropped at the end, layer scale, connector."""
    model, pixels = tower(PLAIN), pictures(PLAIN, 2)
    found = model(pixels)
    grid, size = PLAIN.grid, PLAIN.patch_size
    model = model.double()
    for view in range(2):
        assert model.class_token is not None
        assert model.patch.bias is not None
        rows: list[Tensor] = [model.class_token.detach()]
        for r in range(grid):
            for c in range(grid):
                window = slice(r * size, (r + 1) * size), slice(c * size, (c + 1) * size)
                patch = pixels[view, :, window[0], window[1]].double()
                rows.append((model.patch.weight * patch).sum((1, 2, 3)) + model.patch.bias)
        x_NW = torch.stack(rows) + model.position
        for block in model.blocks:
            assert isinstance(block, Block)
            x_NW = plain_block(block, x_NW, PLAIN.heads, PLAIN.eps)
        expected = model.connector(pixel_shuffle(x_NW[None, 1:], PLAIN.pixel_shuffle))[0]
        limit = 256 * 2.0**-24 * float(expected.abs().max())
        torch.testing.assert_close(found[view].double(), expected, rtol=0, atol=limit)


@torch.no_grad()
def test_the_class_token_is_read_by_patches_but_gives_no_token() -> None:
    """Changing it changes the tokens, whose number it does not change."""
    model, pixels = tower(PLAIN), pictures(PLAIN, 1)
    before = model(pixels)
    assert model.class_token is not None
    model.class_token.neg_()
    assert before.shape == (1, PLAIN.tokens, 24)
    assert (model(pixels) - before).abs().max() > 1e-3


@torch.no_grad()
def test_a_layer_scale_of_zero_makes_a_block_the_identity() -> None:
    """Both residual branches are scaled."""
    block = Block(dataclasses.replace(PLAIN, layer_scale=0.0))
    x_VNW = torch.randn(1, 5, PLAIN.hidden, generator=generator("scale"))
    assert torch.equal(block(x_VNW), x_VNW)
    assert not torch.equal(Block(dataclasses.replace(PLAIN, layer_scale=0.1))(x_VNW), x_VNW)


def test_without_layer_scale_and_class_token_there_are_no_such_weights() -> None:
    """Options that are off leave nothing in the weight file."""
    config = dataclasses.replace(PLAIN, layer_scale=None, class_token=False)
    names = set(VisionTower(config, 8).state_dict())
    assert not {name for name in names if "scale" in name or "class" in name}


@pytest.mark.parametrize("config", [PLAIN, STEM], ids=["patches", "stem"])
@torch.no_grad()
def test_views_do_not_see_each_other(config: VisionConfig) -> None:
    """A view in a batch equals the view alone, up to the order of summation."""
    model, pixels = tower(config), pictures(config, 3)
    together = model(pixels)
    assert together.shape == (3, config.tokens, 24)
    for view in range(3):
        limit = 64 * 2.0**-24 * float(together.abs().max())
        alone = model(pixels[view : view + 1])[0]
        torch.testing.assert_close(alone, together[view], rtol=0, atol=limit)


@torch.no_grad()
def test_no_view_gives_no_token() -> None:
    """A batch whose every camera dropped out runs."""
    assert tower(PLAIN)(pictures(PLAIN, 0)).shape == (0, PLAIN.tokens, 24)


@pytest.mark.parametrize("seed", range(3))
def test_a_fresh_tower_sees_a_small_object(seed: int) -> None:
    """A puck of 8 pixels in an even scene is at least a tenth of the tokens before any training."""
    config = preset("metaworld-small").vision
    torch.manual_seed(seed)
    model = VisionTower(config, 192)
    scene = torch.rand(3, 1, 1, generator=generator("scene")).expand(3, 96, 96) - 0.5
    puck = scene.clone()
    puck[:, 40:48, 40:48] = torch.tensor([0.9, -0.9, -0.9])[:, None, None]
    with torch.no_grad():
        without, with_puck = model(torch.stack([scene, puck]))
    assert (with_puck - without).std() > 0.1 * without.std()
