"""What judges are served: the recorder's pictures, every one, and not a word of the recorder's."""

import io
import resource
import signal
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from python_tests.blind.conftest import recorded
from vlakern.blind.video import strip
from vlakern.errors import StudyError

CANARY = "canary4f1d"
TAGS = {name: f"{CANARY} {name}" for name in ("title", "comment", "encoder", "handler_name")}


def stripped(video: bytes, folder: Path) -> tuple[str, bytes]:
    ending = strip(io.BytesIO(video), folder / "copy")
    return ending, (folder / "copy").read_bytes()


def pictures(video: bytes) -> list[tuple[float | None, bytes]]:
    """Time and pixels of every frame."""
    with av.open(io.BytesIO(video)) as file:
        return [
            (one.time, one.to_ndarray(format="rgb24").tobytes()) for one in file.decode(video=0)
        ]


def full(form: str, codec: str) -> bytes:
    """A file with tags, a chapter, a track of sound, and an encoder's words in it."""
    sink = io.BytesIO()
    with av.open(sink, "w", format=form) as file:
        stream = file.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = file.add_stream("libopus", rate=48000)
        for name, value in TAGS.items():
            file.metadata[name] = stream.metadata[name] = sound.metadata[name] = value
        chapter = {"title": f"{CANARY} chapter"}
        file.set_chapters(
            [{"id": 1, "start": 0, "end": 5, "time_base": Fraction(1, 10), "metadata": chapter}]
        )
        pixels = np.random.default_rng(3).integers(0, 256, (12, 48, 64, 3), np.uint8)
        for frame in pixels:
            file.mux(stream.encode(VideoFrame.from_ndarray(frame, format="rgb24")))
        file.mux(stream.encode())
    return sink.getvalue()


@pytest.mark.parametrize(
    ("form", "codec", "ending"),
    [
        ("mp4", "libx264", ".mp4"),
        ("mp4", "libx265", ".mp4"),
        ("mp4", "libvpx-vp9", ".mp4"),
        ("webm", "libvpx", ".webm"),
        ("webm", "libvpx-vp9", ".webm"),
        ("matroska", "libx264", ".mp4"),
    ],
)
def test_a_recorders_words_are_gone(tmp_path: Path, form: str, codec: str, ending: str) -> None:
    """Tags of the file and its tracks, a chapter, sound, x264's and x265's settings between the
    pictures: none is in what is kept; all pictures are, bit for bit and at their times."""
    if codec not in av.codecs_available:
        pytest.skip(f"this FFmpeg was built without {codec}")
    video = full(form, codec)
    assert CANARY.encode() in video
    found, kept = stripped(video, tmp_path)
    assert found == ending
    for word in (CANARY.encode(), b"x264", b"x265", b"Lavc", b"options:"):
        assert word not in kept
    assert pictures(kept) == pictures(video)
    with av.open(io.BytesIO(kept)) as file:
        assert [one.type for one in file.streams] == ["video"]
    again, same = stripped(kept, tmp_path)
    assert (again, pictures(same)) == (ending, pictures(kept))
    assert stripped(video, tmp_path)[1] == kept  # the same video twice is the same file


def test_words_between_the_pictures_are_gone(tmp_path: Path) -> None:
    """A unit of user data with a name in it, before every picture of an H.264 stream."""
    video = bytearray(recorded())
    at = video.index(b"x264 - core")
    video[at : at + len(CANARY)] = CANARY.encode()
    assert CANARY.encode() not in stripped(bytes(video), tmp_path)[1]


def test_how_a_phone_was_held_stays(tmp_path: Path) -> None:
    """The matrix that turns a picture upright is no word of anybody's."""
    video = bytearray(recorded())
    at = video.index(b"tkhd") + 44
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
    assert video[at : at + 4] == struct.pack(">i", 1 << 16)
    video[at : at + 36] = turned
    kept = stripped(bytes(video), tmp_path)[1]
    at = kept.index(b"tkhd") + 44
    assert struct.unpack(">9i", kept[at : at + 36])[:2] == (0, 1 << 16)


def black(codec: str, count: int) -> bytes:
    """One picture in each of some streams."""
    sink = io.BytesIO()
    with av.open(sink, "w", format="mp4") as file:
        streams = [file.add_stream(codec, rate=10) for _ in range(count)]
        for stream in streams:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for stream in streams:
            frame = VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            file.mux([*stream.encode(frame), *stream.encode()])
    return sink.getvalue()


@pytest.mark.parametrize(
    ("video", "sentence"),
    [
        (b"", "neither MP4 nor WebM"),
        (b"#EXTM3U\n/etc/passwd\n", "neither MP4 nor WebM"),
        (b"\0\0\0\x18ftypisom" + bytes(40), "cannot be read to its end"),
        (b"\x1aE\xdf\xa3" + bytes(range(256)), "cannot be read to its end"),
        (recorded(movflags="+faststart")[:-200], "cannot be read to its end"),
        (recorded()[:3000], "cannot be read to its end"),
        (recorded(ending=".webm")[:300], "cannot be read to its end"),
        (black("libx264", 2), "has 2 streams of pictures, expected one"),
        (black("mpeg4", 1), "codec is mpeg4, which browsers do not play"),
    ],
    ids=["empty", "a list", "a head", "a WebM head", "cut", "half", "cut WebM", "two", "codec"],
)
def test_what_cannot_be_copied_whole_is_refused(
    tmp_path: Path, video: bytes, sentence: str
) -> None:
    """In a sentence that says what to do."""
    with pytest.raises(StudyError, match=rf"{sentence}.*as H\.264 in MP4"):
        strip(io.BytesIO(video), tmp_path / "copy")


def test_a_damaged_video_is_refused_or_copied(tmp_path: Path) -> None:
    """Bytes of it changed at random: a sentence, or a file; never another error."""
    videos, source = (recorded(), recorded(ending=".webm")), np.random.default_rng(5)
    refused = 0
    for index in range(100):
        video = bytearray(videos[index % 2])
        for at in source.integers(0, len(video), 20):
            video[at] = source.integers(0, 256)
        try:
            strip(io.BytesIO(bytes(video)), tmp_path / "copy")
        except StudyError:
            refused += 1
    assert 0 < refused < 100


@pytest.mark.parametrize("room", [0, 2000, 5000])
def test_a_full_disk_is_the_disks_fault(tmp_path: Path, room: int) -> None:
    """Not the video's: the error is the system's, so the page can say what to do."""
    video = recorded()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            strip(io.BytesIO(video), tmp_path / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, heard)
