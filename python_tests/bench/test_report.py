"""The picture of a measurement."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlakern.bench import report
from vlakern.bench.latency import STAGES, BenchResult, VariantResult, stage_times
from vlakern.bench.report import histogram_range, stacked, write_plot


def result(*names: str) -> BenchResult:
    """A measurement in which stage i takes i + 1 ms and the total 15 ms."""
    samples = {stage: [i + 1.0] * 5 for i, stage in enumerate(STAGES)}
    samples["total"] = [14.0, 15.0, 15.0, 15.0, 17.0]
    stages = {stage: stage_times(one, 3.0) for stage, one in samples.items()}
    one = VariantResult(stages, samples, error=0.0)
    return BenchResult({"views": 2}, dict.fromkeys(names, one), {}, None)


def test_plot_shows_every_variant_and_stage(tmp_path: Path) -> None:
    """A PNG with the colour of each stage, in areas that are the stages' shares."""
    write_plot(tmp_path / "a.png", result("vlakern-bf16", "torch-eager-bf16"))
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image)
    areas = []
    for color in report.STAGE_COLORS:
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        areas.append(int((pixels == wanted).all(axis=-1).sum()))
    assert areas[3] > areas[2] > areas[0] > 0
    assert areas[4] / areas[0] == pytest.approx(5, rel=0.2)


def test_more_variants_make_a_taller_picture(tmp_path: Path) -> None:
    """No bar is drawn over another one."""
    heights = []
    for names in (["a"], ["a", "b", "c"]):
        write_plot(tmp_path / "b.png", result(*names))
        with Image.open(tmp_path / "b.png") as image:
            heights.append(image.height)
    assert heights[1] - heights[0] == 2 * (report.BAR + report.GAP)


def test_bars_are_laid_end_to_end() -> None:
    """Each stage begins where the one before it ended."""
    assert stacked(result("a"), "a") == [(0, 1), (1, 3), (3, 6), (6, 10), (10, 15)]


def test_equal_samples_have_a_range() -> None:
    """A histogram of one value has a width."""
    assert histogram_range([2.0, 2.0]) == (1.5, 2.5)
    assert histogram_range([1.0, 4.0]) == (1.0, 4.0)
