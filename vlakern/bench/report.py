"""A picture of a measurement: a histogram of the total and the stages as stacked bars."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlakern.bench.latency import STAGES, BenchResult
from vlakern.drawing import INK, MARGIN, QUIET, SERIES, WIDTH, Canvas

__all__ = ["write_plot"]

LABEL, HISTOGRAM, BAR, GAP = 220, 300, 34, 18  # [px]
BINS = 60
STAGE_COLORS = ("#9aa5b1", "#3567d6", "#1a9e5c", "#e08a1e", "#c2c9d1")


def write_plot(path: Path, result: BenchResult) -> None:
    """Writes a PNG, 1200 pixels wide: one colour per variant above, one per stage below."""
    rows = len(result.variants)
    height = 2 * MARGIN + HISTOGRAM + 120 + rows * (BAR + GAP) + 60
    canvas = Canvas(height)
    _histogram(canvas, result)
    _bars(canvas, result, MARGIN + HISTOGRAM + 110)
    facts = ", ".join(f"{key} {value}" for key, value in result.settings.items())
    canvas.text(MARGIN, height - MARGIN, facts, QUIET, size=13)
    canvas.save(path)


def _histogram(canvas: Canvas, result: BenchResult) -> None:
    totals = {name: one.samples_ms["total"] for name, one in result.variants.items()}
    canvas.text(MARGIN, MARGIN - 20, "total of a call [ms], share of calls", size=17)
    low, high = histogram_range([ms for samples in totals.values() for ms in samples])
    top, bottom = MARGIN + 10, MARGIN + HISTOGRAM
    shares = {
        name: np.histogram(samples, BINS, (low, high))[0] / len(samples)
        for name, samples in totals.items()
    }
    most = max(float(share.max()) for share in shares.values())
    canvas.box(MARGIN, bottom, WIDTH - 2 * MARGIN, 1, INK)
    step = (WIDTH - 2 * MARGIN) / BINS
    for i, (name, share) in enumerate(shares.items()):
        color = SERIES[i % len(SERIES)]
        points = [(float(MARGIN), float(bottom))]
        for j, value in enumerate(share):
            y = bottom - (bottom - top) * float(value) / most
            points += [(MARGIN + j * step, y), (MARGIN + (j + 1) * step, y)]
        canvas.outline([*points, (WIDTH - MARGIN, bottom)], color)
        p50 = result.variants[name].stages["total"].p50_ms
        canvas.box(WIDTH - 360, top + 22 * i + 3, 14, 14, color)
        canvas.text(WIDTH - 338, top + 22 * i, f"{name}, p50 {p50:.1f} ms")
    for i in range(5):
        x = MARGIN + (WIDTH - 2 * MARGIN - 50) * i / 4
        canvas.text(x, bottom + 6, f"{low + (high - low) * i / 4:.1f}", QUIET, size=13)


def histogram_range(samples_ms: Sequence[float]) -> tuple[float, float]:
    """The ends of the horizontal axis: all samples, and some width if they are all the same."""
    low, high = min(samples_ms), max(samples_ms)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _bars(canvas: Canvas, result: BenchResult, top: float) -> None:
    canvas.text(MARGIN, top - 46, "p50 of the stages [ms]; the line is the floor", size=17)
    for i, stage in enumerate(STAGES):
        canvas.box(MARGIN + 130 * i, top - 16, 14, 14, STAGE_COLORS[i])
        canvas.text(MARGIN + 130 * i + 20, top - 19, stage, QUIET, size=13)
    top += 14
    longest = max(stacked(result, name)[-1][1] for name in result.variants)
    scale = (WIDTH - 2 * MARGIN - LABEL - 90) / longest
    for row, (name, one) in enumerate(result.variants.items()):
        y, left = top + row * (BAR + GAP), MARGIN + LABEL
        canvas.text(MARGIN, y + 8, name)
        ends = stacked(result, name)
        for (begin, end), color in zip(ends, STAGE_COLORS, strict=True):
            canvas.box(left + begin * scale, y, (end - begin) * scale, BAR, color)
        canvas.text(left + ends[-1][1] * scale + 8, y + 8, f"{ends[-1][1]:.1f}")
        floor = one.stages["total"].floor_ms
        if floor is not None:
            canvas.box(left + floor * scale, y - 4, 2, BAR + 8, INK)


def stacked(result: BenchResult, name: str) -> list[tuple[float, float]]:
    """Where each stage's part of the bar begins and ends [ms]."""
    ends, begin = [], 0.0
    for stage in STAGES:
        end = begin + result.variants[name].stages[stage].p50_ms
        ends.append((begin, end))
        begin = end
    return ends
