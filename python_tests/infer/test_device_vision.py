"""The vision tower's program: of the first views alone, for any of the numbers it is made for."""

from types import ModuleType

import pytest
import torch

from vlakern.testing import assert_accurate
from vlakern.testing.compare import largest_error


@pytest.mark.parametrize(
    "name", ["tiny", "tiny, scales and full masks", "metaworld-small", "tiny-pi0", "tiny-smolvla"]
)
def test_the_first_views(lab: ModuleType, device_lab: ModuleType, name: str) -> None:
    """Image tokens of each number of views obey the 2x rule; those behind them stay NaN."""
    scene = lab.Scene(name)
    pixels = scene.batch().pixels_V3SS
    engine = device_lab.device_engine(scene, "fp32")
    with torch.no_grad():
        exact = lab.network_as(name, torch.float64).vision(pixels.double()).flatten(0, 1)
        plain = lab.network(name).vision(pixels).flatten(0, 1)
    for views in (6, 2, 1):
        device_lab.spoil(engine)
        engine.take_pixels(pixels[:views])
        found = engine.vision(views)
        rows = views * scene.config.vision.tokens
        if views == 6:
            assert_accurate(found, exact, plain)
        # Of few views the largest error of torch is luck: that of all is the yardstick.
        assert largest_error(found, exact[:rows]) <= 2 * largest_error(plain, exact)
        assert bool(engine.buffers.sources[rows:].isnan().all())


def test_no_views(lab: ModuleType, device_lab: ModuleType) -> None:
    """No tokens, and nothing runs."""
    engine = device_lab.device_engine(lab.Scene("tiny").only(0), "fp32")
    assert engine.vision(0).shape == (0, 64)
    assert bool(engine.buffers.sources.isnan().all())
