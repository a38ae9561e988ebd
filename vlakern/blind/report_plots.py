"""Plots of a report as inline SVG: intervals, outcomes over the queue, e-values over the pairs."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

__all__ = ["Bar", "curves", "intervals", "strips"]

WIDTH = 760
LABEL = 190
RIGHT = 180
ROW = 26
TOP = 10
AXIS = 34


class Bar(NamedTuple):
    """A point with an interval: its label, the numbers in words, and whether it stands out."""

    label: str
    value: float
    low: float
    high: float
    words: str
    strong: bool = False


def intervals(
    title: str,
    bars: Sequence[Bar],
    domain: tuple[float, float],
    ticks: Sequence[tuple[float, str]],
    zero: float | None = None,
) -> str:
    """Dots with whiskers, one row each; ``zero`` draws a vertical line of no difference.

    Values outside ``domain`` are drawn at its edge.
    """
    height = TOP + ROW * len(bars) + AXIS

    def x(value: float) -> float:
        share = (min(max(value, domain[0]), domain[1]) - domain[0]) / (domain[1] - domain[0])
        return LABEL + share * (WIDTH - LABEL - RIGHT)

    bottom = TOP + ROW * len(bars)
    parts = [_line(x(v), TOP, x(v), bottom, "grid") for v, _ in ticks]
    parts += [_text(x(v), bottom + 18, words, "tick", "middle") for v, words in ticks]
    if zero is not None:
        parts.append(_line(x(zero), TOP, x(zero), bottom, "zero"))
    for index, bar in enumerate(bars):
        y = TOP + ROW * (index + 0.5)
        tone = "strong" if bar.strong else "mark"
        parts += [
            _text(LABEL - 10, y + 4, bar.label, "label", "end"),
            _line(x(bar.low), y, x(bar.high), y, f"whisker {tone}"),
            *(_line(x(v), y - 5, x(v), y + 5, f"whisker {tone}") for v in (bar.low, bar.high)),
            f'<circle cx="{x(bar.value):.1f}" cy="{y:.1f}" r="4.5" class="{tone}"/>',
            _text(WIDTH - RIGHT + 12, y + 4, bar.words, "words", "start"),
        ]
    return _svg(title, height, parts)


def strips(title: str, rows: Sequence[tuple[str, Sequence[tuple[int, bool]]]]) -> str:
    """One row of marks for each label: filled where it succeeded, hollow where it failed.

    Args:
        title: for readers that do not see the picture.
        rows: ``(label, [(position, success), ...])``; positions start at 0.
    """
    last = max((place for _, marks in rows for place, _ in marks), default=0)
    span, bottom = max(1, last), TOP + ROW * len(rows)
    step = (WIDTH - LABEL - 20) / span
    radius = max(1.2, min(5.0, step * 0.45 * max(1, len(rows) // 2)))
    parts = []
    for index, (label, marks) in enumerate(rows):
        y = TOP + ROW * (index + 0.5)
        parts += [
            _line(LABEL, y, WIDTH - 20, y, "grid"),
            _text(LABEL - 10, y + 4, label, "label", "end"),
        ]
        for place, success in marks:
            kind = "mark" if success else "hollow"
            x = LABEL + place * step
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" class="{kind}"/>')
    parts += [
        _text(LABEL, bottom + 18, "first trial", "tick", "start"),
        _text(WIDTH - 20, bottom + 18, f"trial {last + 1}", "tick", "end"),
    ]
    return _svg(title, bottom + AXIS, parts)


def curves(
    title: str, series: Sequence[tuple[str, Sequence[float]]], threshold: float, unit: str
) -> str:
    """Positive values over their index on a logarithmic scale, with a dashed threshold."""
    height, bottom = 300, 300 - AXIS
    longest = max(1, *(len(values) for _, values in series))
    every = [math.log10(max(v, 1e-12)) for _, values in series for v in values]
    top = max([*every, math.log10(threshold)]) + 0.3
    floor = min([*every, 0.0]) - 0.1
    right = WIDTH - RIGHT

    def x(index: int) -> float:
        return LABEL / 2 + index / longest * (right - LABEL / 2)

    def y(value: float) -> float:
        share = (math.log10(max(value, 1e-12)) - floor) / (top - floor)
        return bottom - share * (bottom - TOP)

    stride = max(1, math.ceil((top - floor) / 6))
    parts = []
    for power in range(math.ceil(floor), math.floor(top) + 1, stride):
        parts.append(_line(x(0), y(10.0**power), right, y(10.0**power), "grid"))
        parts.append(_text(x(0) - 8, y(10.0**power) + 4, f"{10.0**power:g}", "tick", "end"))
    parts.append(_line(x(0), y(threshold), right, y(threshold), "zero dashed"))
    parts.append(_text(right + 6, y(threshold) + 4, f"{threshold:g}", "words", "start"))
    used: list[float] = []
    for label, values in sorted(series, key=lambda one: -one[1][-1] if one[1] else 0.0):
        points = [(x(0), y(1.0)), *((x(i + 1), y(v)) for i, v in enumerate(values))]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        strong = " strong" if max(values, default=0.0) >= threshold else ""
        parts.append(f'<polyline points="{path}" class="curve{strong}"/>')
        # Labels of curves that end close to each other would cover each other.
        place = max(points[-1][1] + 4, used[-1] + 14 if used else 0)
        if abs(place - y(threshold) - 4) < 12:
            place = y(threshold) + 18
        used.append(place)
        parts.append(_text(min(points[-1][0], right) + 6, place, label, "words", "start"))
    parts.append(_text(x(0), height - 8, f"0 {unit}", "tick", "start"))
    parts.append(_text(right, height - 8, f"{longest} {unit}", "tick", "end"))
    return _svg(title, max(height, round(max([0.0, *used])) + 12), parts)


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def _text(x: float, y: float, words: str, kind: str, anchor: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text {place} class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'
