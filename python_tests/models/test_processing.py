"""Records of what surrounds a network: defaults change nothing, and wrong ones are refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlakern import ops
from vlakern.errors import ConfigError
from vlakern.models.processing import (
    CameraName,
    ImageRule,
    Processing,
    PromptRule,
    discretised,
)
from vlakern.ops.image_prep.reference import rows_of_patches
from vlakern.records import from_dict, to_dict

IMAGES = np.load(Path(__file__).parent / "weights" / "golden" / "processing" / "images.npz")
PI05 = PromptRule(
    clean=("strip", "underscores", "newlines"),
    parts=("Task: {instruction}, State: {state};\nAction: ",),
    bos="<bos>",
    most_tokens=200,
)


def test_the_default_leaves_words_and_images_as_they_were() -> None:
    """An older config.json has none of these keys."""
    old = {"state": "zscore", "action": "none", "execute": 3, "frame": "native"}
    found = from_dict(Processing, old, "config.json.processing")
    assert found == Processing("zscore", "none", execute=3)
    assert found.prompt.texts(" press_the\nbutton ") == [" press_the\nbutton "]
    assert found.image.settings["fit"] == "letterbox"
    assert found.view_of(("front", "wrist")) == {"front": "front", "wrist": "wrist"}


def test_every_field_survives_its_file() -> None:
    """JSON and back."""
    rule = ImageRule("cover", "bicubic_antialias", 7, (0.5, 0.5, 0.5), (0.1, 0.2, 0.3))
    given = Processing(
        epsilon="beingh",
        image=rule,
        prompt=PI05,
        cameras=(CameraName("top", "base_0_rgb"),),
        relative=(0, 1, 5),
    )
    assert from_dict(Processing, json.loads(json.dumps(to_dict(given)))) == given


def test_bins_of_a_state() -> None:
    """256 equal bins of [-1, 1]: below is -1, each edge belongs to the bin above, 1 to the last."""
    numbers = [-1.5, -1.0, np.nextafter(-1.0, -2), 0.0, -1e-9, 2 / 256 - 1, 1 - 1e-9, 1.0, 40.0]
    assert discretised(np.array(numbers)) == [-1, 0, -1, 128, 127, 1, 255, 255, 255]


def test_words_with_a_state() -> None:
    """The state's numbers are text; what the instruction holds is never a field."""
    (text,) = PI05.texts(" pick_up {state}\n", np.array([-1.0, 0.0, 1.0]))
    assert text == "Task: pick up {state}, State: 0 128 255;\nAction: "
    ended = PromptRule(ending="\n")
    assert ended.texts("go") == ["go\n"] == ended.texts("go\n")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"prompt": {"parts": ["{state}"]}}, "hold {instruction} 0 times, expected once"),
        ({"prompt": {"clean": ["upper"]}}, r"clean\[0\]: expected one of"),
        ({"prompt": {"most_tokens": 0}}, "most_tokens is 0, expected 1 to"),
        ({"prompt": {"bins": 1}}, "bins is 1, expected 2 to"),
        ({"image": {"pad": -255}}, "pad is -255, expected a level of 0 to 255 with the filter"),
        ({"image": {"filter": "bilinear", "pad": -256}}, "pad is -256, expected .* -255 to 255"),
        ({"image": {"mean": [0.5]}}, "expected one number per channel"),
        ({"image": {"mean": [0, 0, 0], "std": [1, 1, 0]}}, "std above 0"),
        ({"image": {"fit": "crop"}}, "image.fit: expected one of"),
        ({"state": "sigmoid"}, "state: expected one of"),
    ],
)
def test_a_wrong_field_is_named(values: dict[str, Any], sentence: str) -> None:
    """One sentence with the key and what it may hold."""
    with pytest.raises(ConfigError, match=sentence):
        from_dict(Processing, values, "config.json.processing")


@pytest.mark.parametrize(
    ("cameras", "sentence"),
    [
        ((CameraName("a", "lens"),), "view 'lens' is not one of the embodiment's"),
        ((CameraName("wrist", "front"),), "'wrist' is the name of two views"),
        ((CameraName("a", "front"), CameraName("a", "wrist")), "'a' is the name of two views"),
    ],
)
def test_wrong_camera_names_are_refused(cameras: tuple[CameraName, ...], sentence: str) -> None:
    """A view that is not there, or a name that could mean two."""
    with pytest.raises(ConfigError, match=sentence):
        Processing(cameras=cameras).view_of(("front", "wrist"))


RULES = {
    "openpi": (ImageRule("openpi"), 1e-6),
    "lerobot": (ImageRule("openpi", "bilinear", -255), 2e-5),
    "smolvla": (ImageRule("lerobot", "bilinear"), 2e-5),
}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("family", RULES)
def test_pixels_are_the_families(family: str, backend: str) -> None:
    """Wide, tall and narrow images, padded and scaled by each family's own functions.

    Written by weights/make_golden_processing.py. fp32 roundings of levels are 1.5e-5 of a range.
    """
    rule, tolerance = RULES[family]
    for name in ("wide", "tall", "narrow"):
        expected = IMAGES[f"{name}_{family}"]
        if expected.dtype == np.uint8:
            expected = (expected.astype(np.float32) / 255 * 2 - 1).transpose(2, 0, 1)
        image = IMAGES[f"{name}_image"]
        found = ops.image_prep(image, size=28, backend=backend, **rule.settings)[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)
        rows = ops.image_prep(image, size=28, patch=14, backend=backend, **rule.settings)
        planes = torch.from_numpy(found)[None]
        assert torch.equal(rows, rows_of_patches(planes, 14))
    assert (IMAGES["wide_lerobot"].min() == -3.0) == (IMAGES["wide_smolvla"].min() == -1.0)


@pytest.mark.parametrize("shape", [(30, 41), (50, 33), (28, 28), (28, 57), (61, 60)])
def test_cover_is_a_resize_and_the_middle(shape: tuple[int, int]) -> None:
    """torchvision's arithmetic: the shorter side fits, the other is truncated, the rest cut off."""
    height, width = shape
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    short, long = min(shape), max(shape)
    tall, wide = (28 if side == short else int(28 * long / short) for side in shape)
    resized = np.asarray(Image.fromarray(image).resize((wide, tall), Image.Resampling.BICUBIC))
    top, left = round((tall - 28) / 2.0), round((wide - 28) / 2.0)
    levels = resized[top : top + 28, left : left + 28].transpose(2, 0, 1) / 255
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (levels - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    rule = ImageRule("cover", "bicubic_antialias", 0, mean, std)
    for backend in ("reference", "cpu"):
        found = ops.image_prep(image, size=28, backend=backend, **rule.settings)[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
