"""Pictures of measurements and runs, drawn with Pillow.

The tests and the simulators need Pillow anyway; a plotting library would be the largest dependency
of the package for a few pictures.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from vlakern.errors import ConfigError
from vlakern.files import write_file

__all__ = ["INK", "LINE", "MARGIN", "QUIET", "SERIES", "WIDTH", "Canvas", "check_drawing"]

WIDTH, MARGIN = 1200, 40  # [px]
INK, QUIET, LINE = "#1b1f24", "#667080", "#e3e6ea"
SERIES = ("#3567d6", "#d6453d", "#1a9e5c", "#e08a1e", "#8a4fd1", "#0e9aa7", "#7a5c3e", "#b03a7c")


def check_drawing() -> None:
    """Refuses before the work if pictures cannot be drawn.

    Raises:
        ConfigError: Pillow is not installed, or too old to bring a font.
    """
    words = "--plot needs Pillow 10.1 or newer; run: pip install 'vlakern[plot]'"
    if find_spec("PIL") is None:
        raise ConfigError(words)
    import PIL

    if tuple(int(part) for part in PIL.__version__.split(".")[:2]) < (10, 1):
        raise ConfigError(words)


class Canvas:
    """Boxes, lines and words on a white ground, :data:`WIDTH` wide."""

    def __init__(self, height: int) -> None:
        from PIL import Image, ImageDraw

        self._image = Image.new("RGB", (WIDTH, height), "white")
        self._draw = ImageDraw.Draw(self._image)

    def text(self, x: float, y: float, words: str, color: str = INK, size: int = 15) -> None:
        """Words with their upper left corner at a place."""
        from PIL import ImageFont

        self._draw.text((x, y), words, fill=color, font=ImageFont.load_default(size))

    def box(self, x: float, y: float, width: float, height: float, color: str) -> None:
        """A filled rectangle; one thinner than a pixel is left out."""
        if width >= 1 and height >= 1:
            self._draw.rectangle((x, y, x + width - 1, y + height - 1), fill=color)

    def outline(
        self, points: Sequence[tuple[float, float]], color: str, thickness: int = 2
    ) -> None:
        """A line through the points."""
        self._draw.line(list(points), fill=color, width=thickness)

    def save(self, path: Path) -> None:
        """Writes a PNG in one step."""
        write_file(path, lambda temporary: self._image.save(temporary, format="PNG"))
