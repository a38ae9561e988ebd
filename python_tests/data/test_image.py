"""Pictures: JPEG and PNG as Pillow decodes them, damage never as pixels."""

import io

import numpy as np
import pytest
from PIL import Image

from vlakern.data.image import decode_image
from vlakern.errors import DatasetError


def scene(height: int = 90, width: int = 122) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = [128 + 100 * np.sin(x / 17), 128 + 90 * np.cos(y / 11 + x / 30), 2 * (x + y) % 256]
    picture = np.stack(waves, axis=-1).astype(np.uint8)
    picture[20:40, 30:51] = (255, 0, 0)
    return picture


def encoded(picture: np.ndarray, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, form, **options)  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def test_png_is_exact():
    """A PNG gives back every number."""
    np.testing.assert_array_equal(decode_image(encoded(scene(), "PNG"), "a"), scene())


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [75, 95])
def test_jpeg_is_what_pillow_gives(subsampling: int, quality: int):
    """Another decoder agrees within 4 levels, with colour at full and at half size."""
    content = encoded(scene(), "JPEG", quality=quality, subsampling=subsampling)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    found = decode_image(content, "a").astype(int)
    assert np.abs(found - expected).max() <= 4
    assert np.abs(found - expected).mean() < 0.3


def test_other_colours():
    """Grey, palette and transparency become RGB."""
    grey = scene()[..., 0]
    for form in ("PNG", "JPEG"):
        found = decode_image(encoded(grey, form, quality=100), "a").astype(int)
        assert np.abs(found - grey[..., None]).max() <= 2
    clear = np.dstack([scene(), np.full(scene().shape[:2], 255, np.uint8)])
    np.testing.assert_array_equal(decode_image(encoded(clear, "PNG"), "a"), scene())
    flat = np.zeros((4, 6, 3), np.uint8)
    flat[1:] = (10, 200, 30)
    palette = io.BytesIO()
    Image.fromarray(flat).quantize(2).save(palette, "PNG")
    np.testing.assert_array_equal(decode_image(palette.getvalue(), "a"), flat)


def test_deep_colours_are_refused():
    """16 bits a pixel, as depth has it, is not made into a picture."""
    depth = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    with pytest.raises(DatasetError, match="a has gray16be pixels, expected 8 bits"):
        decode_image(encoded(depth, "PNG"), "a")


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_truncation(form: str):
    """A picture that was cut off anywhere is refused."""
    content = encoded(scene(), form)
    for keep in range(0, len(content) - 4, max(1, len(content) // 40)):
        with pytest.raises(DatasetError, match="robot 7"):
            decode_image(content[:keep], "robot 7")


def test_bit_flips_in_png(seed: int):
    """Every flipped bit of a PNG is found or harmless, because its parts have checksums."""
    content, random = encoded(scene(), "PNG"), np.random.default_rng(seed)
    refused = 0
    for place in random.integers(8 * len(content), size=200):
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << int(place % 8)
        try:
            np.testing.assert_array_equal(decode_image(bytes(flipped), "a"), scene())
        except DatasetError:
            refused += 1
    assert refused >= 190


def test_no_picture():
    """Bytes of another format are refused with how they begin."""
    for content in (b"", b"GIF89a....", bytes(100)):
        with pytest.raises(DatasetError, match=r"a is no JPEG or PNG picture \(\d+ bytes"):
            decode_image(content, "a")
