"""H.264 video files of small frames: exact frame counts in, exact frame counts out."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from vlakern.errors import DatasetError, InputError

__all__ = ["PIXEL_FORMATS", "VideoWriter", "read_frames"]

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
        DatasetError: the file cannot be decoded or a frame is missing.
    """
    import av
    import av.error

    try:
        with av.open(str(path)) as container:
            found = _decode(container, first, count, fps)
    except (av.error.FFmpegError, IndexError) as error:
        raise DatasetError(f"{path} cannot be decoded ({error}); make the dataset again") from error
    missing = [first + k for k in range(count) if k not in found]
    if missing:
        raise DatasetError(
            f"{path} lacks frame {missing[0]} ({len(missing)} of {count} are missing); "
            "the file is truncated or its episode table is wrong"
        )
    return np.stack([found[k] for k in range(count)])


def _decode(container: Any, first: int, count: int, fps: float) -> dict[int, np.ndarray]:
    """Frame number relative to ``first`` -> picture."""
    stream = container.streams.video[0]
    start = stream.start_time or 0
    container.seek(start + round(first / fps / stream.time_base), stream=stream)
    found: dict[int, np.ndarray] = {}
    for frame in container.decode(stream):
        index = round(float((frame.pts - start) * stream.time_base) * fps) - first
        if index >= count:
            break
        if index >= 0:
            found[index] = frame.to_ndarray(format="rgb24")
    return found


def _rate(fps: float) -> Fraction:
    return Fraction(fps).limit_denominator(1001)


def _rate_fraction(stream: Any) -> Fraction:
    return Fraction(stream.codec_context.framerate)
