"""H.264 video files of small frames: exact frame counts in, exact frame counts out."""

import functools
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vlakern.data.pool import Pool
from vlakern.errors import DatasetError, InputError

__all__ = [
    "OPEN_DECODERS",
    "PIXEL_FORMATS",
    "VideoReader",
    "VideoWriter",
    "read_frames",
    "read_picture",
]

# An open decoder of 96 x 96 frames takes about 1 MB, one of 720p about 20.
OPEN_DECODERS = 32
# Containers round rates such as 29.97.
RATE_TOLERANCE = 0.01

# Every player takes yuv420p; yuv444p keeps colour at full size, which marks of 3 pixels need.
PIXEL_FORMATS = ("yuv420p", "yuv444p")

# Small frames need quality more than they need to be small; every tenth frame can be jumped to.
_ENCODER = {
    "crf": "8",
    "g": "10",
    "bf": "0",
    "preset": "veryfast",
    "forced-idr": "1",
    # x264's AVX-512 code for this gives one small file in fifty other bytes; off costs 5 % of them.
    "mbtree": "0",
}


class VideoWriter:
    """Appends frames to one MP4 file; the file is playable only after ``close()``.

    ``frames`` counts what was appended, ``bytes`` what the encoder has given out so far.
    """

    def __init__(
        self, path: Path, fps: float, height: int, width: int, pixel_format: str = "yuv420p"
    ) -> None:
        """Args: fps: [Hz]; height, width: [pixels], even where colour is stored at half size."""
        import av
        import av.video.frame

        if pixel_format not in PIXEL_FORMATS:
            raise InputError(
                f"pixel format {pixel_format!r} is not known; use one of {', '.join(PIXEL_FORMATS)}"
            )
        if pixel_format == "yuv420p" and (height % 2 or width % 2):
            raise InputError(f"a video frame is {height} x {width}, expected even numbers")
        self._av = av
        self._shape = (height, width, 3)
        self.frames = 0
        self.bytes = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._container: Any = av.open(str(path), "w")
        self._stream: Any = self._container.add_stream("libx264", rate=_rate(fps), options=_ENCODER)
        self._stream.height, self._stream.width = height, width
        self._stream.pix_fmt = self._format = pixel_format

    def append(self, frames: np.ndarray) -> None:
        """Adds uint8 ``[T, H, W, 3]``; the first of them can be jumped to."""
        if frames.dtype != np.uint8 or frames.shape[1:] != self._shape:
            raise InputError(
                f"frames are {frames.dtype} {frames.shape}, expected uint8 [T, {self._shape}]"
            )
        for k, picture in enumerate(frames):
            frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame = frame.reformat(format=self._format)
            frame.pts = self.frames
            frame.time_base = 1 / _rate_fraction(self._stream)
            if k == 0:
                frame.pict_type = self._av.video.frame.PictureType.I
            self._mux(frame)
            self.frames += 1

    def close(self) -> None:
        """Writes what the encoder still holds and the index."""
        if self._container is not None:
            self._mux(None)
            self._container.close()
            self._container = None

    def _mux(self, frame: Any) -> None:
        """Encodes a frame, or with None what the encoder still holds."""
        packets = self._stream.encode(frame)
        self.bytes += sum(packet.size for packet in packets)
        self._container.mux(packets)


def read_frames(path: Path, first: int, count: int, fps: float) -> np.ndarray:
    """Decodes ``count`` frames from number ``first`` of ``path``: uint8 ``[count, H, W, 3]``.

    Raises:
        DatasetError: the file cannot be decoded, plays at another rate, or a frame is missing.
    """
    with _borrowed(path, fps) as reader:
        return np.stack(reader.read(first, count))


def read_picture(path: Path, number: int, fps: float) -> np.ndarray:
    """Frame ``number`` of ``path``: uint8 ``[H, W, 3]``; raises as :func:`read_frames`.

    Decoders stay open between calls, up to :data:`OPEN_DECODERS` a process.
    """
    with _borrowed(path, fps) as reader:
        return reader.read(number, 1)[0]


class VideoReader:
    """One open video file and its decoder; for one thread at a time."""

    def __init__(self, path: Path, fps: float) -> None:
        """Raises: DatasetError: the file cannot be opened or plays at another rate."""
        import av
        import av.error
        import av.video.reformatter

        self._path, self._fps = path, fps
        self._errors = (av.error.FFmpegError, IndexError, ValueError)
        try:
            self._container: Any = av.open(str(path))
            self._stream: Any = self._container.streams.video[0]
        except self._errors as error:
            raise self._unreadable(error) from error
        if self._stream.codec_context is None or not self._stream.time_base:
            raise self._unreadable("no known codec or no clock")
        # A decoder's own threads would not survive a fork, and workers are parallel already.
        self._stream.codec_context.thread_count = 1
        self._stream.codec_context.options = {"err_detect": "explode"}
        self._start = self._stream.start_time or 0
        self._frames_per_tick = float(self._stream.time_base) * fps
        # One reformatter for all frames: making one costs more than using it on a small frame.
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._decoded: Any = iter(())
        self._last: int | None = None
        self._reach = 1
        self._check_rate()

    def read(self, first: int, count: int) -> list[np.ndarray]:
        """Frames ``first`` to ``first + count - 1``: uint8 ``[H, W, 3]`` each."""
        try:
            found = self._read(first, count)
        except self._errors as error:
            raise self._unreadable(error) from error
        missing = [first + k for k in range(count) if k not in found]
        if missing:
            raise DatasetError(
                f"{self._path} lacks frame {missing[0]} ({len(missing)} of {count} are missing);"
                " the file is truncated or its episode table is wrong"
            )
        return [found[k] for k in range(count)]

    def _read(self, first: int, count: int) -> dict[int, np.ndarray]:
        """Frame number relative to ``first`` -> picture, for those that are there."""
        if self._last is None or not 0 < first - self._last <= self._reach:
            self._seek(first)
        found: dict[int, np.ndarray] = {}
        passed = 0
        for frame in self._decoded:
            self._last = self._number(frame)
            passed += self._last < first
            if first <= self._last < first + count:
                if frame.is_corrupt:
                    raise DatasetError(f"{self._path}: frame {self._last} is damaged")
                picture = self._reformatter.reformat(frame, format="rgb24", **_one_thread())
                found[self._last - first] = picture.to_ndarray()
            if self._last >= first + count - 1:
                break
        # Going on is cheaper than jumping back to a key frame up to about this many frames.
        self._reach = max(self._reach, passed)
        return found

    def _seek(self, number: int) -> None:
        self._last = None
        offset = self._start + round(number / self._fps / self._stream.time_base)
        self._container.seek(offset, stream=self._stream)
        self._decoded = self._container.decode(self._stream)

    def _number(self, frame: Any) -> int:
        if frame.pts is None:
            raise self._unreadable("a frame without time")
        return round((frame.pts - self._start) * self._frames_per_tick)

    def _check_rate(self) -> None:
        rate = self._stream.average_rate
        # A single frame has no rate of its own.
        if self._stream.frames > 1 and rate and abs(float(rate) / self._fps - 1) > RATE_TOLERANCE:
            raise DatasetError(
                f"{self._path} plays {float(rate):g} frames a second, but the dataset's fps is"
                f" {self._fps:g}"
            )

    def _unreadable(self, error: Exception | str) -> DatasetError:
        return DatasetError(f"{self._path} cannot be decoded ({error}); make the dataset again")


@functools.cache
def _one_thread() -> dict[str, int]:
    """The argument that keeps PyAV from starting threads for a small picture, where it has one."""
    import av.video.reformatter

    text = str(av.video.reformatter.VideoReformatter.reformat.__doc__)
    return {"threads": 1} if ":param int threads:" in text else {}


_pool: Pool[VideoReader] = Pool(OPEN_DECODERS)


def _borrowed(path: Path, fps: float) -> AbstractContextManager[VideoReader]:
    return _pool.borrow(path, lambda: VideoReader(path, fps), fps)


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _rate_fraction(stream: Any) -> Fraction:
    return Fraction(stream.codec_context.framerate)
