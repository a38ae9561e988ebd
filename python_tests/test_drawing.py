"""Pictures, and the sentence without the library that draws them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlakern import drawing
from vlakern.drawing import Canvas, check_drawing
from vlakern.errors import ConfigError


def test_what_is_drawn_is_in_the_picture(tmp_path: Path) -> None:
    """Boxes, lines and words in their colours; a box without an area leaves no trace."""
    canvas = Canvas(100)
    canvas.box(10, 10, 20, 5, "#ff0000")
    canvas.box(50, 10, 0.5, 5, "#00ff00")
    canvas.outline([(0, 50), (100, 50)], "#0000ff", thickness=1)
    canvas.text(10, 70, "words", "#123456")
    canvas.save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert (image.format, image.size) == ("PNG", (drawing.WIDTH, 100))
        pixels = np.asarray(image)
    for color, areas in ((0xFF0000, [100]), (0x00FF00, [0]), (0x0000FF, [100, 101])):
        wanted = [color >> 16, color >> 8 & 255, color & 255]
        assert int((pixels == wanted).all(axis=-1).sum()) in areas
    assert (pixels[70:90] < 255).any()


@pytest.mark.parametrize("version", [None, "9.5.0"])
def test_without_pillow(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """Said before the work, with what to install."""
    import PIL

    if version is None:
        monkeypatch.setattr(drawing, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(PIL, "__version__", version)
    with pytest.raises(ConfigError, match=r"pip install 'vlakern\[plot\]'"):
        check_drawing()
