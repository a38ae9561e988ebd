"""Reading files that anyone may have written: regular ones alone, bounded, and strict JSON.

Everything here refuses before it allocates, so that a hostile file costs about as much as a small
good one.
"""

import codecs
import io
import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from vlakern.errors import CheckpointError, VlakernError

__all__ = [
    "JSON_LIMIT",
    "POINTER",
    "open_regular",
    "parse_json",
    "read_bounded",
    "read_json",
    "shown",
]

JSON_LIMIT = 1 << 20  # bytes of a configuration
# What stands for a large file in a repository that was cloned without git-lfs.
POINTER = b"version https://git-lfs.github.com/spec/"
MOST_DEPTH = 64
# Parsed values take some hundred bytes each, the text of one as few as two.
MOST_CONTAINERS = 1 << 15
MOST_VALUES = 200_000
MOST_WIDE = 2 << 20  # bytes of text that is not ASCII, which takes four bytes a letter
MOST_DIGITS = 19
SHOWN = 80
MOST_SHOWN = 8  # items of a list
KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def shown(value: Any) -> str:
    """``value`` as a sentence can quote it: its repr, at most 80 characters of it."""
    if isinstance(value, (list, tuple, dict)) and len(value) > MOST_SHOWN:
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value[: SHOWN + 1] if isinstance(value, str) else value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def open_regular(
    path: Path, needed: str = "", error: type[VlakernError] = CheckpointError
) -> BinaryIO:
    """Opens a regular file for reading; a pipe or a device is refused and never waited for.

    Args:
        needed: ends the sentence about a file that is not there.

    Raises:
        VlakernError: of the class ``error``.
    """
    try:
        _check_regular(path, os.stat(path).st_mode, error)
        handle = os.open(path, os.O_RDONLY | NO_WAITING)
    except (FileNotFoundError, NotADirectoryError) as cause:
        ending = f"; {needed}" if needed else ""
        raise error(f"{_name(path)} is missing{ending}") from cause
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or str(cause)
        raise error(f"{_name(path)} cannot be read ({reason}); expected a file") from cause
    file = os.fdopen(handle, "rb")
    try:
        # Asked again of what was opened: the name may have got another meaning since.
        _check_regular(path, os.fstat(handle).st_mode, error)
    except VlakernError:
        file.close()
        raise
    return file


def _name(path: Path) -> str:
    """The path as a sentence can hold it: one line, in letters that can be written."""
    text = str(path)
    return text if text.isprintable() and len(text) <= 4 * SHOWN else shown(text)


def _check_regular(path: Path, mode: int, error: type[VlakernError]) -> None:
    if not stat.S_ISREG(mode):
        found = next((name for test, name in KINDS if test(mode)), "no regular file")
        raise error(f"{_name(path)} is {found}, expected a regular file")


def read_bounded(
    path: Path, limit: int, needed: str = "", error: type[VlakernError] = CheckpointError
) -> bytes:
    """The content of a regular file of at most ``limit`` bytes; arguments and errors as above."""
    with open_regular(path, needed, error) as file:
        try:
            size = os.fstat(file.fileno()).st_size
            content = b"" if size > limit else file.read(size + 1)
        except OSError as cause:
            raise error(f"{_name(path)} cannot be read ({cause.strerror})") from cause
    if size > limit:
        raise error(f"{_name(path)} is larger than {limit} bytes; expected a smaller file")
    if content.startswith(POINTER):
        raise error(
            f"{_name(path)} is a pointer of git-lfs, expected the file itself; run git lfs pull"
            " there"
        )
    if len(content) > size:
        raise error(f"{_name(path)} is larger than the {size} bytes it claims; copy it again")
    return content


def read_json(
    path: Path,
    limit: int = JSON_LIMIT,
    needed: str = "",
    error: type[VlakernError] = CheckpointError,
) -> Any:
    """The value of a JSON file, as :func:`parse_json` takes it; arguments and errors as above."""
    content = read_bounded(path, limit, needed, error)
    try:
        return parse_json(content)
    except ValueError as cause:
        raise error(f"{_name(path)} is not valid JSON: {_first_line(cause)}") from cause


def parse_json(content: bytes) -> Any:
    """The value of a JSON text whose objects hold every key once and whose numbers are finite.

    Raises:
        ValueError: it is not JSON, holds a key twice, NaN, an infinity or a number beyond 64 bits
            or fp64, is nested deeper than 64, or has so many values that they would fill memory.
    """
    if content.startswith(codecs.BOM_UTF8):
        raise ValueError("it begins with a byte order mark; save it as UTF-8 without one")
    brackets = content.count(b"[") + content.count(b"{")
    if brackets > MOST_CONTAINERS or content.count(b",") > MOST_VALUES:
        raise ValueError(f"it holds more than {MOST_CONTAINERS} lists or {MOST_VALUES} values")
    if len(content) > MOST_WIDE and not content.isascii():
        raise ValueError(f"it has more than {MOST_WIDE} bytes and letters that are not ASCII")
    try:
        value = json.loads(
            content.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_no_constant,
        )
    except RecursionError as cause:
        raise ValueError(f"it is nested deeper than {MOST_DEPTH}") from cause
    if brackets > MOST_DEPTH and _is_deep(value):
        raise ValueError(f"it is nested deeper than {MOST_DEPTH}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {shown(twice)} appears twice")
    return found


def _whole(text: str) -> int | float:
    if text == "-0":
        return -0.0  # no count, as other readers have it
    if len(text.lstrip("-")) > MOST_DIGITS:
        raise ValueError(f"the number {shown(text)} has more than 64 bits")
    return int(text)


def _finite(text: str) -> float:
    found = float(text)
    if not math.isfinite(found):
        raise ValueError(f"the number {shown(text)} is beyond fp64")
    return found


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number of JSON")


def _is_deep(value: Any) -> bool:
    level: list[Any] = [value]
    for _ in range(MOST_DEPTH):
        level = [child for one in level for child in _children(one) if _holds(child)]
        if not level:
            return False
    return True


def _holds(value: Any) -> bool:
    return isinstance(value, (dict, list))


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _first_line(error: Exception) -> str:
    text = io.StringIO(str(error)).readline().rstrip("\n")
    return text if len(text) <= 3 * SHOWN else f"{text[: 3 * SHOWN]}..."
