"""Single JPEG and PNG pictures, decoded to RGB or refused."""

from typing import Any

import numpy as np

from vlakern.errors import DatasetError

__all__ = ["decode_image"]

# First bytes of a file -> FFmpeg's decoder of it.
_CODECS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "mjpeg"}
# A JPEG cut off in its last lines would otherwise pass.
_JPEG_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"
# Checksums are checked, and what does not fit the format is an error, not a grey patch.
_STRICT = {"err_detect": "crccheck+bitstream+buffer+explode"}


def decode_image(content: bytes, where: str) -> np.ndarray:
    """uint8 ``[H, W, 3]`` RGB of a whole JPEG or PNG file of 8 bits a colour.

    PyAV decodes, because the extra that reads datasets has it anyway. Colour that a JPEG stores at
    half size is interpolated as libjpeg does it: within 3 levels of Pillow's pixels.

    Args:
        where: what to call the picture in an error.

    Raises:
        DatasetError: another format, damage, or more than 8 bits a colour.
    """
    import av
    import av.error
    import av.video.reformatter

    codec = next((name for magic, name in _CODECS.items() if content.startswith(magic)), None)
    if codec is None:
        raise DatasetError(
            f"{where} is no JPEG or PNG picture ({len(content)} bytes that begin with"
            f" {content[:8]!r})"
        )
    if codec == "mjpeg" and content.rfind(_JPEG_END) < content.rfind(_JPEG_SCAN):
        raise DatasetError(f"{where} is a JPEG picture without an end")
    decoder: Any = av.CodecContext.create(codec, "r")
    decoder.thread_count = 1
    decoder.options = _STRICT
    try:
        frames = decoder.decode(av.Packet(content)) or decoder.decode(None)
    except (av.error.FFmpegError, ValueError) as error:
        raise DatasetError(f"{where} is a damaged {codec.upper()} picture ({error})") from error
    if len(frames) != 1 or frames[0].is_corrupt:
        raise DatasetError(f"{where} is a damaged {codec.upper()} picture")
    frame = frames[0]
    if max(component.bits for component in frame.format.components) > 8:
        raise DatasetError(f"{where} has {frame.format.name} pixels, expected 8 bits a colour")
    reformatter = av.video.reformatter.VideoReformatter()
    if frame.format.name.startswith("yuvj") and frame.format.name != "yuvj444p":
        # Straight to RGB, FFmpeg would repeat colours instead of interpolating them.
        frame = reformatter.reformat(frame, format="yuvj444p", interpolation="BILINEAR")
    return reformatter.reformat(frame, format="rgb24").to_ndarray()
