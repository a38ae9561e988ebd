"""Frame-rate alignment: a stride per dataset, so that chunks of different robots span like times.

A chunk of H steps taken every ``stride`` frames of a dataset recorded at ``rate`` spans
``H * stride / rate`` seconds. A dataset with a stride contributes every ``stride``-th frame as the
start of a chunk, from an offset that is drawn anew for each episode.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlakern.errors import InputError

__all__ = [
    "EffectiveFrames",
    "FrameRow",
    "Source",
    "Stride",
    "chunk_index",
    "draw_offset",
    "effective_frames",
    "start_frames",
    "suggest_stride",
]


# Years of frames, and more steps than any model predicts: what is larger is a slip.
MOST_FRAMES = 1 << 31
MOST_CHUNK = 1 << 16


@dataclass(frozen=True)
class Stride:
    """How a dataset is sampled.

    Attributes:
        rate: at which it was recorded [Hz].
        stride: frames from one step of a chunk to the next.

    Raises:
        InputError: a rate that is not positive and finite, or a stride that is no whole number from
            1 to 2**31.
    """

    rate: float
    stride: int = 1

    def __post_init__(self) -> None:
        _check_rate(self.rate, "rate")
        _check_whole(self.stride, "stride", 1)

    @property
    def effective_rate(self) -> float:
        """Of the steps of a chunk [Hz]."""
        return self.rate / self.stride

    def span(self, chunk: int) -> float:
        """Time that ``chunk`` steps take [s]."""
        _check_whole(chunk, "chunk", 1, MOST_CHUNK)
        return chunk * self.stride / self.rate


def suggest_stride(rate: float, target_rate: float) -> int:
    """The stride whose effective rate is nearest to the target as a ratio.

    It minimises ``|log(rate / stride / target_rate)|`` over 1, 2, 3, ...; a dataset slower than the
    target keeps stride 1. Rates are rational, so two strides are never equally near.

    Args:
        rate: of the dataset [Hz].
        target_rate: that all datasets should come near [Hz].

    Raises:
        InputError: a rate that is not positive and finite.
    """
    _check_rate(rate, "rate")
    _check_rate(target_rate, "target rate")
    ratio = rate / target_rate
    if ratio > MOST_FRAMES:
        raise InputError(f"a rate of {rate} Hz has no stride towards {target_rate} Hz")
    below = max(math.floor(ratio), 1)
    return below + 1 if ratio * ratio > below * (below + 1) else below


def chunk_index(frame: int, length: int, chunk: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames of the chunk that starts at ``frame``: index int64 ``[H]`` and valid bool ``[H]``.

    Step k is frame ``frame + k * stride``. Past the episode's end the index stays at the last frame
    and valid is false: an absolute target is held there; a relative one becomes the identity.

    Raises:
        InputError: a frame outside the episode, a length or stride that is no whole number from 1
            to 2**31, or a chunk that is none from 1 to 2**16.
    """
    for value, name in ((length, "length"), (stride, "stride")):
        _check_whole(value, name, 1)
    _check_whole(chunk, "chunk", 1, MOST_CHUNK)
    _check_whole(frame, "frame", 0)
    if frame >= length:
        raise InputError(f"frame {frame} is outside an episode of {length} frames")
    index = frame + stride * np.arange(chunk, dtype=np.int64)
    return np.minimum(index, length - 1), index < length


def draw_offset(length: int, stride: int, rng: np.random.Generator) -> int:
    """The first start frame of an episode: uniform over the first stride's frames, all from rng.

    Over many draws every frame of an episode is a start equally often. An episode shorter than the
    stride gives one start.
    """
    _check_whole(length, "length", 1)
    _check_whole(stride, "stride", 1)
    return int(rng.integers(min(stride, length)))


def start_frames(length: int, stride: int, offset: int = 0) -> np.ndarray:
    """Start frames that an episode contributes, int64: ``offset, offset + stride, ...``.

    Raises:
        InputError: a length or stride below 1, or an offset outside ``[0, min(stride, length))``.
    """
    _check_whole(length, "length", 1)
    _check_whole(stride, "stride", 1)
    _check_whole(offset, "offset", 0)
    if offset >= min(stride, length):
        raise InputError(
            f"offset {offset} is outside [0, {min(stride, length)}) of an episode of {length}"
            f" frames with stride {stride}"
        )
    return np.arange(offset, length, stride, dtype=np.int64)


@dataclass(frozen=True)
class Source:
    """A dataset as the report sees it: its name, its episodes' lengths [frames], its sampling."""

    name: str
    lengths: Sequence[int]
    stride: Stride


@dataclass(frozen=True)
class FrameRow:
    """What one dataset contributes.

    Attributes:
        name: of the dataset.
        raw, effective: frames that it has, and start frames that it contributes.
        rate, effective_rate: of its frames and of a chunk's steps [Hz].
        stride: frames per step.
        span: of a chunk [s].
    """

    name: str
    raw: int
    effective: int
    rate: float
    stride: int
    effective_rate: float
    span: float


@dataclass(frozen=True)
class EffectiveFrames:
    """The report of :func:`effective_frames`.

    Attributes:
        chunk: steps per chunk.
        rows: one per dataset.
    """

    chunk: int
    rows: tuple[FrameRow, ...]

    @property
    def raw(self) -> int:
        """Frames of all datasets."""
        return sum(row.raw for row in self.rows)

    @property
    def effective(self) -> int:
        """Start frames of all datasets."""
        return sum(row.effective for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """The report for programs: chunk, datasets and total."""
        return {
            "chunk": self.chunk,
            "datasets": [
                {
                    "name": row.name,
                    "raw_frames": row.raw,
                    "effective_frames": row.effective,
                    "rate_hz": row.rate,
                    "stride": row.stride,
                    "effective_rate_hz": row.effective_rate,
                    "chunk_span_s": row.span,
                }
                for row in self.rows
            ],
            "total": {"raw_frames": self.raw, "effective_frames": self.effective},
        }

    def table(self) -> str:
        """The report for people: aligned columns, a row per dataset, and the total."""
        head = (
            "dataset",
            "raw frames",
            "effective",
            "rate [Hz]",
            "stride",
            "effective [Hz]",
            f"{self.chunk} steps [s]",
        )
        lines = [
            (
                row.name,
                f"{row.raw:,}",
                f"{row.effective:,}",
                f"{row.rate:g}",
                str(row.stride),
                f"{row.effective_rate:.3g}",
                f"{row.span:.3g}",
            )
            for row in self.rows
        ]
        cells = [head, *lines, ("total", f"{self.raw:,}", f"{self.effective:,}", "", "", "", "")]
        widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
        return "\n".join(_line(line, widths) for line in cells)


def effective_frames(sources: Sequence[Source], chunk: int) -> EffectiveFrames:
    """Counts what each dataset contributes with its stride.

    An episode of L frames counts ``max(L / stride, 1)`` start frames: the mean over the offsets of
    :func:`draw_offset`; a dataset's sum is rounded to a whole number.

    Raises:
        InputError: no datasets, a name twice, or an episode without frames.
    """
    _check_whole(chunk, "chunk", 1, MOST_CHUNK)
    names = [source.name for source in sources]
    if not names:
        raise InputError("the report needs at least one dataset, found none")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two datasets are called {twice[0]!r}; give each its own name")
    return EffectiveFrames(chunk, tuple(_row(source, chunk) for source in sources))


def _row(source: Source, chunk: int) -> FrameRow:
    for length in source.lengths:
        _check_whole(length, f"length of an episode of {source.name}", 1)
    sampling = source.stride
    effective = math.fsum(max(length / sampling.stride, 1.0) for length in source.lengths)
    return FrameRow(
        source.name,
        sum(int(length) for length in source.lengths),
        round(effective),
        sampling.rate,
        sampling.stride,
        sampling.effective_rate,
        sampling.span(chunk),
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """The name to the left, numbers to the right."""
    name = cells[0].ljust(widths[0])
    numbers = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return "  ".join([name, *numbers]).rstrip()


def _check_rate(value: float, name: str) -> None:
    number = isinstance(value, (int, float, np.integer, np.floating)) and value is not True
    if not (number and 0.0 < value <= sys.float_info.max):
        found = f"{value} Hz" if number else repr(value)
        raise InputError(f"the {name} is {found[:40]}, expected a positive number of Hz")


def _check_whole(value: int, name: str, least: int, most: int = MOST_FRAMES) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InputError(f"the {name} is {value!r}, expected a whole number of at least {least}")
    if value > most:
        raise InputError(
            f"the {name} is {str(value)[:40]}, expected a whole number of at most {most}"
        )
