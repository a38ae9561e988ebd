"""A recording as judges may see it: its one picture stream, copied bit for bit, and nothing else.

Recorders write names into files: tags, chapters, handlers, attachments, tracks of text or sound,
an encoder's own words between the pictures. None of that is copied.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vlakern.errors import ConfigError, StudyError

__all__ = ["check_reader", "strip"]

FORMATS = {b"ftyp": "mp4", b"\x1aE\xdf\xa3": "matroska"}
# Units that hold pictures or how to decode them: H.264 and H.265 table 7-1, AV1 section 6.2.2.
UNITS = {"h264": "1-5|7-8", "hevc": "0-21|32-37", "av1": "1-4|6-7"}
WEB = ("vp8", "vp9", "av1")  # what WebM may hold
NEWEST = 15  # of PyAV that lacks nothing of this
COVER = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC
ADVICE = "record it, or convert it, as H.264 in MP4"


def check_reader() -> None:
    """Refuses to begin without what reads videos.

    Raises:
        ConfigError: PyAV is not installed, or too old.
    """
    wanted = f"videos are read with PyAV {NEWEST} or newer; run `pip install 'vlakern[blind]'`"
    try:
        import av
    except ImportError as error:
        raise ConfigError(f"PyAV is missing: {wanted}") from error
    if int(av.__version__.split(".")[0]) < NEWEST:
        raise ConfigError(f"PyAV is {av.__version__}: {wanted}")


def strip(video: BinaryIO, target: Path) -> str:
    """Copies the picture stream of ``video`` into the new file ``target``, which is not synced.

    Args:
        video: MP4 or WebM, readable from any place.

    Returns:
        The ending that ``target`` should have.

    Raises:
        StudyError: it is neither, cannot be read to its end, or has not one picture stream.
        OSError: the disk is full or gone.
    """
    check_reader()
    from av.error import FFmpegError

    video.seek(0)
    head = video.read(12)
    video.seek(0)
    form = FORMATS.get(head[4:8]) or FORMATS.get(head[:4])
    if form is None:
        raise StudyError(f"the video is neither MP4 nor WebM; {ADVICE}")
    try:
        return _copy(video, form, target)
    except (FFmpegError, ValueError) as error:
        if isinstance(error, OSError) and error.filename == str(target):
            raise
        raise StudyError(f"the video cannot be read to its end ({error}); {ADVICE}") from error


def _copy(video: BinaryIO, form: str, target: Path) -> str:
    import av

    # The format is given: one that FFmpeg guesses may be a list of other files to open.
    with av.open(video, "r", format=form) as source:
        stream = _pictures(source)
        name = stream.codec_context.codec.canonical_name
        web = form == "matroska" and name in WEB
        options = {"fflags": "+bitexact"}  # neither the writer's name nor a random number
        if not web:
            options |= {"movflags": "+faststart", "write_btrt": "0"}
        kind = "webm" if web else "mp4"
        with av.open(str(target), "w", format=kind, options=options) as copy:
            out = copy.add_stream_from_template(stream, opaque=True)
            out.codec_context.extradata = _setup(name, stream.codec_context.extradata or b"")
            if stream.codec_context.codec_tag == "hvc1":  # the tag that Safari plays
                out.codec_context.codec_tag = "hvc1"
            count = 0
            for packet in _packets(source, stream, UNITS.get(name)):
                packet.stream = out
                copy.mux_one(packet)
                count += 1
    if not count:
        raise StudyError(f"the video holds no picture; {ADVICE}")
    return f".{kind}"


def _pictures(source: Any) -> Any:
    """The one stream of pictures; a cover is none."""
    found = [one for one in source.streams.video if not int(one.disposition) & COVER]
    if len(found) != 1:
        raise StudyError(f"the video has {len(found)} streams of pictures, expected one; {ADVICE}")
    context = found[0].codec_context
    name = None if context is None else context.codec.canonical_name
    if name not in (*UNITS, *WEB):
        raise StudyError(f"the video's codec is {name}, which browsers do not play; {ADVICE}")
    return found[0]


def _packets(source: Any, stream: Any, units: str | None) -> Iterator[Any]:
    """The stream's packets without an encoder's words between the pictures."""
    from av.bitstream import BitStreamFilterContext

    keep = units and BitStreamFilterContext(f"filter_units=pass_types={units}", stream)
    for packet in source.demux(stream):
        if packet.size:  # the last one is empty
            yield from keep.filter(packet) if keep else [packet]


def _setup(name: str, data: bytes) -> bytes | None:
    """How the stream is decoded, without anything else: what the writer makes its record from.

    Raises:
        ValueError: the source's record is none.
    """
    if name == "h264":
        return _start_codes(_avcc(data))
    if name == "hevc":
        return _start_codes(_hvcc(data))
    return _av1c(data) if name == "av1" else None


def _start_codes(units: Iterator[bytes]) -> bytes:
    """Parameter sets as in a byte stream, ITU-T H.264 annex B."""
    return b"".join(b"\0\0\0\1" + unit for unit in units)


def _avcc(data: bytes) -> Iterator[bytes]:
    """Parameter sets of an AVCDecoderConfigurationRecord, ISO/IEC 14496-15 section 5.3.3.1."""
    at = 5
    for mask in (0x1F, 0xFF):  # of sequences, of pictures
        count, at = _number(data, at, 1) & mask, at + 1
        for _ in range(count):
            size, at = _number(data, at, 2), at + 2
            yield _slice(data, at, size)
            at += size


def _hvcc(data: bytes) -> Iterator[bytes]:
    """Parameter sets of an HEVCDecoderConfigurationRecord, ISO/IEC 14496-15 section 8.3.3.1."""
    at = 23
    for _ in range(_number(data, 22, 1)):
        kind, count, at = _number(data, at, 1) & 0x3F, _number(data, at + 1, 2), at + 3
        for _ in range(count):
            size, at = _number(data, at, 2), at + 2
            if 32 <= kind <= 34:
                yield _slice(data, at, size)
            at += size


def _av1c(data: bytes) -> bytes:
    """AV1CodecConfigurationRecord: four bytes and, of the units after them, sequence headers."""
    at, kept = 4, _slice(data, 0, 4)
    while at < len(data):
        begin, head = at, data[at]
        at += 2 if head & 4 else 1
        size = shift = 0
        more = bool(head & 2)  # a unit without its size reaches to the end
        if not more:
            size = len(data) - at
        while more:  # LEB128
            byte, at = _number(data, at, 1), at + 1
            size, shift, more = size | (byte & 0x7F) << shift, shift + 7, byte > 0x7F
        at += size
        if head >> 3 & 0xF == 1:
            kept += _slice(data, begin, at - begin)
    return kept


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(_slice(data, at, size), "big")


def _slice(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise ValueError("how to decode it is cut off")
    return data[at : at + size]
