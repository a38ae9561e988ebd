"""A picture of a mixture: the share of each dataset, and which slots it fills."""

from pathlib import Path
from typing import Any

from vlakern.data.survey import Row, Survey
from vlakern.files import write_file

__all__ = ["write_chart"]

WIDTH, MARGIN, LABEL = 1200, 40, 260  # [px]
BAR, GAP, HEAD = 26, 10, 44
INK, QUIET, EMPTY = "#1b1f24", "#667080", "#e3e6ea"
SERIES = ("#3567d6", "#d6453d", "#1a9e5c", "#e08a1e", "#8a4fd1", "#0e9aa7", "#7a5c3e", "#b03a7c")


def write_chart(path: Path, found: Survey) -> None:
    """Writes a PNG, 1200 pixels wide; needs Pillow 10.1 or newer."""
    from PIL import Image, ImageDraw

    tall = len(found.rows) * (BAR + GAP)
    height = 2 * MARGIN + 2 * (HEAD + tall) + 150
    image = Image.new("RGB", (WIDTH, height), "white")
    draw = ImageDraw.Draw(image)
    groups = list(found.groups)
    colors = {name: SERIES[i % len(SERIES)] for i, name in enumerate(groups)}
    _text(draw, MARGIN, MARGIN - 16, f"{found.mixture}: share of samples", size=17)
    top = MARGIN + HEAD - 10
    for i, (name, share) in enumerate(found.groups.items()):
        x = MARGIN + 250 * i
        draw.rectangle((x, top - 20, x + 13, top - 7), fill=colors[name])
        _text(draw, x + 20, top - 22, f"{name} {share:.1%}", QUIET, 13)
    for i, row in enumerate(found.rows):
        _share(draw, top + i * (BAR + GAP), row, colors[row.group])
    top += tall + HEAD + 90
    _slots(draw, top, found, colors)
    facts = f"frame {found.frame}, chunks of {found.chunk} steps, effective frames / raw frames"
    _text(draw, MARGIN, height - MARGIN, facts, QUIET, 13)
    write_file(path, lambda temporary: image.save(temporary, format="PNG"))


def _share(draw: Any, y: float, row: Row, color: str) -> None:
    left, room = MARGIN + LABEL, WIDTH - 2 * MARGIN - LABEL - 280
    _text(draw, MARGIN, y + 4, row.name[:32])
    draw.rectangle((left, y, left + max(1, round(row.share * room)), y + BAR), fill=color)
    words = f"{row.share:.1%}   {row.effective:,} / {row.raw:,}"
    _text(draw, left + row.share * room + 10, y + 4, words, QUIET)


def _slots(draw: Any, top: float, found: Survey, colors: dict[str, str]) -> None:
    """Datasets against the slots of the action, a filled box where it has the slot."""
    names = list(found.slots)
    step = min(90.0, (WIDTH - 2 * MARGIN - LABEL) / max(1, len(names)))
    _text(draw, MARGIN, top - 100, "slots of the action, share of samples", size=17)
    for i, name in enumerate(names):
        x = MARGIN + LABEL + i * step
        # Long names in turns on four lines, so that neighbours do not overlap.
        words = f"{name} {found.slots[name]:.0%}"
        _text(draw, x, top - 74 + 18 * (i % 4), words, QUIET, 12)
    for j, row in enumerate(found.rows):
        y = top + j * (BAR + GAP)
        _text(draw, MARGIN, y + 4, row.name[:32])
        for i, name in enumerate(names):
            x = MARGIN + LABEL + i * step
            color = colors[row.group] if name in row.action else EMPTY
            draw.rectangle((x, y, x + step - 4, y + BAR), fill=color)


def _text(draw: Any, x: float, y: float, words: str, color: str = INK, size: int = 15) -> None:
    from PIL import ImageFont

    draw.text((x, y), words, fill=color, font=ImageFont.load_default(size))
