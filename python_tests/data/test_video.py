"""Videos give back the frames that went in, each at its number."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest

from vlakern.data import video
from vlakern.data.video import (
    PIXEL_FORMATS,
    VideoReader,
    VideoWriter,
    read_frames,
    read_picture,
)
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


def test_single_pictures(path: Path, seed: int):
    """A picture in any order has the numbers that a whole decoding gives it."""
    whole = read_frames(path, 0, 43, 80.0)
    for number in np.random.default_rng(seed).integers(43, size=80).tolist():
        np.testing.assert_array_equal(read_picture(path, number, 80.0), whole[number])
    with pytest.raises(DatasetError, match=r"lacks frame 43 \(1 of 1"):
        read_picture(path, 43, 80.0)
    np.testing.assert_array_equal(read_picture(path, 42, 80.0), whole[42])


@pytest.mark.parametrize(("codec", "distance"), [("libsvtav1", 2), ("libx264", 250)])
def test_other_encoders(tmp_path: Path, codec: str, distance: int, seed: int):
    """LeRobot's AV1 files, and files with B-frames and few key frames, decode at random too."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    frames = numbered(0, 43)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream(codec, rate=30, options={"g": str(distance), "crf": "20"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for k, picture in enumerate(frames.repeat(2, axis=1).repeat(2, axis=2)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = k
            container.mux(stream.encode(frame.reformat(format="yuv420p")))
        container.mux(stream.encode(None))
    whole = read_frames(tmp_path / "a.mp4", 0, 43, 30.0)
    brightness = whole[:, 40:, :20].astype(float).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(brightness, 5.0 * np.arange(43), atol=4.0)
    for number in np.random.default_rng(seed).integers(43, size=40).tolist():
        np.testing.assert_array_equal(read_picture(tmp_path / "a.mp4", number, 30.0), whole[number])


def test_wrong_rate(path: Path):
    """A file that plays at another rate than asked for is refused, not sampled."""
    for rate in (40.0, 79.0, 160.0):
        with pytest.raises(DatasetError, match=rf"a\.mp4 plays 80 frames .* fps is {rate:g}"):
            read_picture(path, 0, rate)
    assert read_picture(path, 0, 80.4).shape == (32, 48, 3)


def test_replaced_file(path: Path):
    """A decoder that is open does not outlive its file."""
    before = read_picture(path, 5, 80.0)
    writer = VideoWriter(path, 80.0, 32, 48)
    writer.append(numbered(30, 10))
    writer.close()
    assert read_picture(path, 5, 80.0).mean() > before.mean() + 50


def test_few_decoders_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However many files are read, the number of open decoders is bounded."""
    monkeypatch.setattr(video._pool, "limit", 3)
    for k in range(8):
        writer = VideoWriter(tmp_path / f"{k}.mp4", 80.0, 32, 48)
        writer.append(numbered(k, 2))
        writer.close()
        read_picture(tmp_path / f"{k}.mp4", 1, 80.0)
    assert len(video._pool) == 3


def test_threads_and_forks(path: Path):
    """Threads side by side and a forked child decode the right frames."""
    whole = read_frames(path, 0, 43, 80.0)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda k: read_picture(path, 7 * k % 43, 80.0), range(86)))
    assert all((picture == whole[7 * k % 43]).all() for k, picture in enumerate(found))
    child = multiprocessing.get_context("fork").Process(target=_check, args=(path, whole))
    child.start()
    child.join(60)
    alive = child.is_alive()
    child.kill()
    assert (alive, child.exitcode) == (False, 0)
    np.testing.assert_array_equal(read_picture(path, 9, 80.0), whole[9])


def _check(path: Path, whole: np.ndarray) -> None:
    for number in range(0, 43, 5):
        np.testing.assert_array_equal(read_picture(path, number, 80.0), whole[number])


def test_flipped_bits(path: Path, seed: int):
    """A flipped bit is refused or costs little: no frame is ever grey, black or missing."""
    whole = read_frames(path, 0, 43, 80.0).astype(float)
    content = path.read_bytes()
    begin = content.index(b"mdat") + 4
    refused = 0
    for place in np.random.default_rng(seed).integers(begin, len(content), size=60).tolist():
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            found = np.stack(VideoReader(path, 80.0).read(0, 43))
        except DatasetError:
            refused += 1
            continue
        assert np.abs(found - whole).mean(axis=(1, 2, 3)).max() < 60
    assert refused > 20
