"""Files that anyone may have written: what is no regular file, too large or strange is refused."""

import json
import os
from pathlib import Path

import pytest

from vlakern.errors import CheckpointError, ConfigError
from vlakern.untrusted import open_regular, parse_json, read_bounded, read_json, shown


def test_ordinary_json_is_what_json_says() -> None:
    """Against the standard library: nesting, numbers, escapes and letters of many alphabets."""
    value = {"a": [1, -2, 2**62, 0.5, 1e300, None, True], "ü\n": {"b": ["字", "{[,", '"', "\\"]}}
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert parse_json(text.encode()) == json.loads(text) == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b'{"a": 1, "b": 2, "a": 1}', "the key 'a' appears twice"),
        (b'[{"x": {"k": 0, "k": 0}}]', "the key 'k' appears twice"),
        (b"[NaN]", "NaN is not a number of JSON"),
        (b"[-Infinity]", "-Infinity is not a number of JSON"),
        (b"1e400", "'1e400' is beyond fp64"),
        (b"-1" + b"0" * 5000, "has more than 64 bits"),
        (b"[" * 65 + b"]" * 65, "nested deeper than 64"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested deeper than 64"),
        (b"[" * 30_000, "nested deeper than 64"),
        (b"[" + b"[]," * 40_000 + b"0]", "more than 32768 lists"),
        (b"[" + b"1," * 300_000 + b"1]", "200000 values"),
        (('"' + "ü" * (1 << 20) + '"').encode(), "letters that are not ASCII"),
        (b"\xff\xfe", "can't decode"),
        (b"{} {}", "Extra data"),
        (b"", "Expecting value"),
    ],
)
def test_strange_json_is_refused(text: bytes, sentence: str) -> None:
    """Each says what is wrong with it."""
    with pytest.raises(ValueError, match=sentence):
        parse_json(text)


def test_the_limits_themselves_pass() -> None:
    """64 levels and the largest number of 64 bits."""
    value = parse_json(b"[" * 64 + b"9223372036854775807" + b"]" * 64)
    for _ in range(64):
        (value,) = value
    assert value == 2**63 - 1


def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path) -> None:
    """A pipe nobody writes to, a device without end, a directory, loops and what is not there."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("{}")
    cases = {
        "pipe": "is a pipe, expected a regular file",
        "zero": "is a device, expected a regular file",
        ".": "is a directory, expected a regular file",
        "loop": "symbolic links",
        "lost": "is missing; look elsewhere",
        "file/below": "is missing; look elsewhere",
        "a\0b": "null byte",
        "x" * 300: "too long",
    }
    for name, sentence in cases.items():
        with pytest.raises(CheckpointError, match=sentence) as caught:
            read_json(tmp_path / name, needed="look elsewhere")
        assert "\n" not in str(caught.value)
        assert str(caught.value).isprintable()
    with pytest.raises(ConfigError, match="is a pipe"):
        open_regular(tmp_path / "pipe", error=ConfigError)
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"{}"


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """The limit itself passes; one byte more does not, nor does a file that hides its size."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    assert read_bounded(path, 100) == b"x" * 100
    with pytest.raises(CheckpointError, match="is larger than 99 bytes"):
        read_bounded(path, 99)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="is larger than 1048576 bytes"):
        read_json(path)
    with pytest.raises(CheckpointError, match="is larger than the 0 bytes it claims"):
        read_bounded(Path("/proc/self/status"), 10)


def test_quotations_are_short() -> None:
    """Whatever is quoted, a sentence stays one."""
    assert shown("a\nb") == r"'a\nb'"
    assert shown([1, 2]) == "[1, 2]"
    assert shown([0] * 10**6) == "a list of 1000000"
    assert len(shown("x" * 10**6)) < 100
    assert len(shown(["x" * 10**6])) < 100
