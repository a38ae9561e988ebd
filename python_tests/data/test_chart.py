"""The picture of a mixture shows shares as lengths and slots as filled boxes."""

from pathlib import Path

import numpy as np

from vlakern.data.chart import BAR, EMPTY, GAP, LABEL, MARGIN, SERIES, WIDTH, write_chart
from vlakern.data.survey import Row, Survey


def row(name: str, group: str, share: float, slots: tuple[str, ...]) -> Row:
    return Row(name, group, "arm", 10, 5, 2, 10.0, 0.8, share, ("front",), (), slots, 0)


def color(words: str) -> tuple[int, ...]:
    return tuple(int(words[i : i + 2], 16) for i in (1, 3, 5))


def test_lengths_are_shares_and_boxes_are_slots(tmp_path: Path) -> None:
    """A dataset of twice the share has twice the bar; a missing slot is an empty box."""
    from PIL import Image

    rows = (row("a", "x", 2 / 3, ("s", "t")), row("b", "y", 1 / 3, ("s",)))
    slots = {"s": 1.0, "t": 2 / 3}
    found = Survey("m", "native", 8, rows, (), {"x": 2 / 3, "y": 1 / 3}, slots, {}, {}, (), {})
    write_chart(tmp_path / "deep/plot.png", found)
    with Image.open(tmp_path / "deep/plot.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert pixels.shape[1] == WIDTH
    blue, red, empty = ((pixels == color(c)).all(-1) for c in (SERIES[0], SERIES[1], EMPTY))
    first, second = (mask.sum(1).max() for mask in (blue, red))
    assert abs(first - 2 * second) < 4
    boxes = empty.any(1).nonzero()[0]
    assert BAR <= boxes[-1] - boxes[0] + 1 <= BAR + GAP
    assert empty.any(0).nonzero()[0][0] > MARGIN + LABEL
