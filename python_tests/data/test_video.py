"""Videos give back the frames that went in, each at its number."""

from pathlib import Path

import numpy as np
import pytest

from vlakern.data.video import PIXEL_FORMATS, VideoWriter, read_frames
from vlakern.errors import DatasetError, InputError


def numbered(first: int, count: int) -> np.ndarray:
    """Frames whose brightness tells their number, with a mark of 3 pixels in pure green."""
    frames = np.zeros((count, 32, 48, 3), np.uint8)
    frames += (5 * np.arange(first, first + count, dtype=np.uint8))[:, None, None, None]
    frames[:, 10:13, 20:23] = (0, 255, 0)
    return frames


@pytest.fixture
def path(tmp_path: Path) -> Path:
    writer = VideoWriter(tmp_path / "a.mp4", 80.0, 32, 48)
    for first, count in ((0, 17), (17, 1), (18, 25)):
        writer.append(numbered(first, count))
    writer.close()
    assert writer.frames == 43
    return tmp_path / "a.mp4"


@pytest.mark.parametrize(("first", "count"), [(0, 43), (0, 17), (17, 1), (18, 25), (5, 9)])
def test_frames_come_back(path: Path, first: int, count: int):
    """Any range decodes to exactly its frames."""
    found = read_frames(path, first, count, 80.0)
    assert found.shape == (count, 32, 48, 3)
    assert found.dtype == np.uint8
    brightness = found[:, 20:, :10].astype(float).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(brightness, 5.0 * np.arange(first, first + count), atol=2.0)


@pytest.mark.parametrize("fps", [10.0, 30.0, 29.97, 80.0])
def test_frame_numbers_at_any_rate(tmp_path: Path, fps: float):
    """Frame numbers survive the container's own clock."""
    writer = VideoWriter(tmp_path / "a.mp4", fps, 32, 48)
    writer.append(numbered(0, 40))
    writer.close()
    found = read_frames(tmp_path / "a.mp4", 23, 4, fps)
    brightness = found[:, 20:, :10].astype(float).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(brightness, [115, 120, 125, 130], atol=2.0)


def test_full_colour_keeps_small_marks(tmp_path: Path):
    """yuv444p returns a mark of 3 pixels closer than yuv420p does."""
    error = {}
    for pixel_format in PIXEL_FORMATS:
        writer = VideoWriter(tmp_path / "a.mp4", 80.0, 32, 48, pixel_format)
        writer.append(numbered(10, 10))
        writer.close()
        found = read_frames(tmp_path / "a.mp4", 0, 10, 80.0).astype(float)
        error[pixel_format] = np.abs(found - numbered(10, 10))[:, 9:14, 19:24].mean()
    assert error["yuv444p"] < 0.6 * error["yuv420p"]


def test_missing_frames(path: Path):
    """Frames past the end are an error, not zeros."""
    with pytest.raises(DatasetError, match=r"lacks frame 43 \(2 of 5"):
        read_frames(path, 40, 5, 80.0)


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_file(path: Path, keep: float):
    """A file that was cut off is an error that names it."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(DatasetError, match=r"a\.mp4"):
        read_frames(path, 0, 43, 80.0)


def test_damaged_frames(path: Path):
    """Pictures overwritten inside the file do not pass as frames."""
    content = bytearray(path.read_bytes())
    begin = content.index(b"mdat") + 4
    content[begin : begin + 2000] = bytes(2000)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"a\.mp4"):
        read_frames(path, 0, 43, 80.0)


def test_missing_file(tmp_path: Path):
    """A file that is not there is an error that names it."""
    with pytest.raises(DatasetError, match=r"gone\.mp4"):
        read_frames(tmp_path / "gone.mp4", 0, 1, 80.0)


def test_bad_input(tmp_path: Path):
    """Odd sizes where colour is halved, unknown formats and other frames are refused."""
    with pytest.raises(InputError, match="even"):
        VideoWriter(tmp_path / "a.mp4", 80.0, 31, 48)
    with pytest.raises(InputError, match="'rgb'"):
        VideoWriter(tmp_path / "a.mp4", 80.0, 32, 48, "rgb")
    writer = VideoWriter(tmp_path / "a.mp4", 80.0, 32, 48)
    with pytest.raises(InputError, match="expected uint8"):
        writer.append(np.zeros((1, 48, 32, 3), np.uint8))
    writer.close()
