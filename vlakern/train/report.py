"""What people see of a run: the curve as JSON lines, TensorBoard, a picture, a summary."""

import itertools
import json
import math
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from vlakern.drawing import INK, LINE, MARGIN, QUIET, SERIES, WIDTH, Canvas
from vlakern.errors import ConfigError
from vlakern.files import write_bytes

__all__ = [
    "Events",
    "JsonLines",
    "Summary",
    "check_tensorboard",
    "curve_rows",
    "peak_memory",
    "write_curves",
]

PANEL, GAP = 300, 70  # [px]
TICKS = 5
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Summary:
    """What a run did, since it was started or resumed.

    Attributes:
        steps: optimizer steps that are done, with those before a resume.
        samples, seconds: of this process and its ranks, and wall time [s].
        loss: mean finite loss of the last tenth.
        skipped: updates left out because loss or gradient was not finite.
        wait_share: of the wall time that was spent waiting for data.
        views, prefix_tokens: in all samples.
        peak_memory_bytes: of the GPU, or of the process on a CPU; of the first rank.
        stopped: SIGTERM ended it before its last step.
        quarantine: samples drawn by all ranks and those that were damaged, since the run began.
    """

    steps: int
    samples: int
    seconds: float
    loss: float
    skipped: int = 0
    wait_share: float = 0.0
    views: int = 0
    prefix_tokens: int = 0
    peak_memory_bytes: int = 0
    stopped: bool = False
    quarantine: dict[str, Any] = field(default_factory=dict)


class JsonLines:
    """Appends one JSON object per line, flushed, so that a dead run leaves its curve.

    Args:
        head: the first row of a new curve.
        after: continue the curve that is there after this step; later rows are of a run that died
            before its next checkpoint, and are dropped.
    """

    def __init__(self, path: Path, head: Row, after: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [] if after is None else [row for row in _rows(path) if row.get("step", 0) <= after]
        lines = [_line(row) for row in kept] or [_line(head)]
        write_bytes(path, "".join(lines).encode())
        self._file = path.open("a", encoding="utf-8")

    def add(self, row: Row) -> None:
        """Writes one row; numbers that are not finite become null, as JSON has none."""
        self._file.write(_line(row))
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def curve_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a curve that have a step, in order."""
    return [row for row in _rows(path) if "step" in row]


class Events:
    """Scalars for TensorBoard."""

    def __init__(self, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Writes every value under its name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()


def check_tensorboard() -> None:
    """Refuses before the work if there is no TensorBoard.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(
            "--tensorboard needs TensorBoard; run: pip install 'vlakern[tensorboard]'"
        )


def peak_memory(device: torch.device) -> int:
    """The most that this process has held so far [bytes]: of its GPU, else of main memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_curves(path: Path, rows: Sequence[Row], title: str) -> None:
    """Writes a PNG with the loss, on a logarithmic axis if it has no zero, above the learning rate.

    The thin line is every logged step, the thick one their mean over a fiftieth of the run.

    Raises:
        ConfigError: no row has a finite loss.
    """
    losses = _points(rows, "loss")
    if not losses:
        raise ConfigError(f"{path} was not drawn: no step had a finite loss")
    canvas = Canvas(2 * MARGIN + 2 * PANEL + GAP)
    canvas.text(MARGIN, 8, title, QUIET, size=13)
    log = all(value > 0 for _, value in losses)
    _panel(canvas, MARGIN + 20, "loss", losses, smoothed(losses), log)
    _panel(canvas, MARGIN + PANEL + GAP, "learning rate", _points(rows, "lr"), None, False)
    canvas.save(path)


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The running mean over a fiftieth of the points up to each of them."""
    width = max(1, len(points) // 50)
    sums = [0.0, *itertools.accumulate(y for _, y in points)]
    return [
        (x, (sums[i + 1] - sums[max(0, i + 1 - width)]) / min(i + 1, width))
        for i, (x, _) in enumerate(points)
    ]


def ticks(low: float, high: float, log: bool) -> list[float]:
    """Values along an axis, the ends included."""
    if log:
        low, high = math.log(low), math.log(high)
    values = [low + (high - low) * i / (TICKS - 1) for i in range(TICKS)]
    return [math.exp(value) for value in values] if log else values


def _panel(
    canvas: Canvas,
    top: float,
    name: str,
    points: Sequence[tuple[float, float]],
    mean: Sequence[tuple[float, float]] | None,
    log: bool,
) -> None:
    canvas.text(MARGIN, top - 6, name + (", logarithmic" if log else ""), size=17)
    if not points:
        return
    left, right, upper, lower = MARGIN + 80, WIDTH - MARGIN, top + 24, top + PANEL - 30
    first, last = points[0][0], max(points[-1][0], points[0][0] + 1)
    low, high = min(y for _, y in points), max(y for _, y in points)
    if high <= low:
        low, high = (low / 1.1, high * 1.1) if log else (low - 0.5, high + 0.5)
    level = math.log if log else float

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x = left + (right - left) * (point[0] - first) / (last - first)
        share = (level(point[1]) - level(low)) / (level(high) - level(low))
        return x, lower - (lower - upper) * share

    for value in ticks(low, high, log):
        _, y = place((first, value))
        canvas.box(left, y, right - left, 1, LINE)
        canvas.text(MARGIN, y - 8, f"{value:.3g}", QUIET, size=13)
    for value in ticks(first, last, False):
        x, _ = place((value, low))
        canvas.text(x - 14, lower + 6, f"{value:.6g}", QUIET, size=13)
    canvas.outline([(left, lower), (right, lower)], INK, 1)
    canvas.outline([place(point) for point in points], QUIET if mean else SERIES[0], 1)
    if mean:
        canvas.outline([place(point) for point in mean], SERIES[0])


def _points(rows: Sequence[Row], key: str) -> list[tuple[float, float]]:
    found = [(float(row["step"]), row.get(key)) for row in rows if "step" in row]
    return [(x, float(y)) for x, y in found if y is not None and math.isfinite(y)]


def _rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a curve; a killed process may have left half of the last one."""
    found = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            row = json.loads(text)
        except ValueError:
            break
        found.append(row)
    return found


def _line(row: Row) -> str:
    return json.dumps(_finite(row)) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, Path) else value
