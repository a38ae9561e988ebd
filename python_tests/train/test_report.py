"""Curves on disk and in a picture, and the sentences when something is not installed."""

import json
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlakern import drawing
from vlakern.errors import ConfigError
from vlakern.train import report
from vlakern.train.report import JsonLines, curve_rows, smoothed, ticks, write_curves


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_log_keeps_every_row_of_a_run_that_died(tmp_path: Path) -> None:
    """Each row is on disk when it is added; the first says what runs; NaN is null."""
    log = JsonLines(tmp_path / "deep/run.jsonl", {"seed": 1, "at": tmp_path})
    log.add({"step": 1, "loss": 0.5, "more": [math.inf, 2]})
    log.add({"step": 2, "loss": math.nan})
    rows = rows_of(tmp_path / "deep/run.jsonl")
    log.close()
    assert rows == [
        {"seed": 1, "at": str(tmp_path)},
        {"step": 1, "loss": 0.5, "more": [None, 2]},
        {"step": 2, "loss": None},
    ]


def test_a_resumed_run_continues_its_curve(tmp_path: Path) -> None:
    """Rows after the checkpoint, and half a row, are of the run that died; the rest stays."""
    path = tmp_path / "run.jsonl"
    for text in ('{"seed": 1}', '{"step": 1}', '{"step": 2}', '{"step": 3}', '{"st'):
        with path.open("a") as file:
            file.write(text if text == '{"st' else text + "\n")
    log = JsonLines(path, {"seed": 2}, after=2)
    log.add({"step": 3, "loss": 1.0})
    log.close()
    assert rows_of(path) == [{"seed": 1}, {"step": 1}, {"step": 2}, {"step": 3, "loss": 1.0}]
    assert [row["step"] for row in curve_rows(path)] == [1, 2, 3]
    JsonLines(path, {"seed": 3}).close()
    assert rows_of(path) == [{"seed": 3}]
    JsonLines(tmp_path / "lost.jsonl", {"seed": 4}, after=2).close()
    assert rows_of(tmp_path / "lost.jsonl") == [{"seed": 4}]


def dark(path: Path, color: str) -> np.ndarray:
    """The rows and columns of the pixels that have a colour: ``[N, 2]``."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image)
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return np.argwhere((pixels == wanted).all(axis=-1))


def test_the_picture_shows_loss_and_learning_rate(tmp_path: Path) -> None:
    """A falling loss falls from left to right; the learning rate has the panel below."""
    rows: list[Any] = [{"seed": 0}]
    rows += [{"step": i, "loss": 2.0 * 0.97**i, "lr": i / 100} for i in range(1, 101)]
    rows[50]["loss"] = None
    write_curves(tmp_path / "a.png", rows, "a run")
    points = dark(tmp_path / "a.png", drawing.SERIES[0])
    upper = points[points[:, 0] < drawing.MARGIN + report.PANEL]
    lower = points[points[:, 0] > drawing.MARGIN + report.PANEL]
    # A straight line in the logarithm; rows of a picture count downwards.
    assert np.corrcoef(upper[:, 1], upper[:, 0])[0, 1] > 0.999
    assert np.corrcoef(lower[:, 1], lower[:, 0])[0, 1] < -0.999


@pytest.mark.parametrize("losses", [[0.5], [1.0, 1.0], [0.0, 1.0]])
def test_any_finite_curve_can_be_drawn(losses: list[float], tmp_path: Path) -> None:
    """One point, a flat line, and a zero, which has no logarithm."""
    rows = [{"step": i + 1, "loss": loss, "lr": 0.1} for i, loss in enumerate(losses)]
    write_curves(tmp_path / "a.png", rows, "")
    assert (tmp_path / "a.png").exists()


def test_a_curve_without_a_finite_loss_is_refused(tmp_path: Path) -> None:
    """In one sentence."""
    with pytest.raises(ConfigError, match="no step had a finite loss"):
        write_curves(tmp_path / "a.png", [{"step": 1, "loss": None}], "")


def test_the_mean_and_the_ticks_are_what_they_say() -> None:
    """A fiftieth of 100 points is two; a logarithmic axis has equal ratios."""
    points = [(float(i), float(i % 2)) for i in range(100)]
    assert smoothed(points)[:3] == [(0.0, 0.0), (1.0, 0.5), (2.0, 0.5)]
    assert ticks(0.0, 8.0, False) == [0, 2, 4, 6, 8]
    assert ticks(1.0, 16.0, True) == pytest.approx([1, 2, 4, 8, 16])


def test_tensorboard_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without it one sentence says what to install; with it every value goes under its name."""
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'vlakern\[tensorboard\]'"):
        report.check_tensorboard()
    monkeypatch.setattr(report, "find_spec", lambda name: object())
    report.check_tensorboard()
    written: list[Any] = []

    class SummaryWriter:
        def __init__(self, directory: str) -> None:
            written.append(directory)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            written.append((name, value, step))

        def close(self) -> None:
            written.append("closed")

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    events = report.Events(tmp_path / "events")
    events.add(3, {"loss": 0.5, "lr": 0.1})
    events.close()
    assert written == [str(tmp_path / "events"), ("loss", 0.5, 3), ("lr", 0.1, 3), "closed"]


def test_peak_memory_is_at_least_what_is_held() -> None:
    """A tensor of 32 MiB that was written to is counted."""
    held = torch.ones(8 << 20)
    assert report.peak_memory(torch.device("cpu")) > held.nbytes
