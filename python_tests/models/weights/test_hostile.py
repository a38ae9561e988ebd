"""Directories made to do harm: each is one clear error, at once, and fills no memory."""

import json
import os
import resource
import signal
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import vlakern
from vlakern.errors import VlakernError
from vlakern.models.weights.weights_file import INDEX, WEIGHTS, open_directory

MIB = 1 << 20
GOOD = Path(str(resources.files("vlakern") / "policies" / "metaworld-small"))
CONFIG, STATS, TOKENIZER = "config.json", "stats.json", "tokenizer.json"
ENTRY = '"%s":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'


def content(text: str | bytes) -> Callable[[Path], None]:
    """Puts this in place of the file."""
    return lambda path: (
        path.write_bytes(text if isinstance(text, bytes) else text.encode()),
        None,
    )[1]


def weights(header: str | bytes, data: bytes = b"", length: int | None = None):
    text = header if isinstance(header, bytes) else header.encode()
    size = len(text) if length is None else length
    return content(struct.pack("<Q", size) + text + data)


def edited(name: str, *keys: Any, value: Any) -> Callable[[Path], None]:
    """The good file with one value changed."""

    def make(path: Path) -> None:
        values = json.loads((GOOD / name).read_text())
        at = values
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        path.write_text(json.dumps(values))

    return make


def sparse(size: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.touch()
        os.truncate(path, size)

    return make


def link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def sixteen_mib_of_tensors() -> str:
    return "{" + ",".join(ENTRY % i for i in range(250_000)) + "}"


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "directory": os.mkdir,
    "loop": link("loop"),
    "lost": link("/nowhere/at/all"),
    "zeros": link("/dev/zero"),
    "random": link("/dev/urandom"),
    "memory": link("/proc/self/mem"),
    "terminal": link("/dev/tty"),
    "hole of a TiB": sparse(1 << 40),
    "empty": content(b""),
    "pickle": content(b"\x80\x04\x95" + bytes(100)),
    "archive": content(b"PK\x03\x04" + bytes(100)),
    "pointer of git-lfs": content(f"version https://git-lfs.github.com/spec/v1\noid {'a' * 99}\n"),
}
JSONS: dict[str, Callable[[Path], None]] = {
    "deep lists": content("[" * 100_000),
    "deep and closed": content("[" * 500 + "]" * 500),
    "deep objects": content('{"a":' * 50_000 + "1" + "}" * 50_000),
    "number of a MiB": content("9" * MIB),
    "power beyond fp64": content('{"frame": 1e400}'),
    "NaN": content('{"frame": NaN}'),
    "key twice": content('{"frame": "native", "frame": "native"}'),
    "lists without end": content("[" + "[]," * 300_000 + "[]]"),
    "no text": content(b"\xff\xfe\x00"),
    "byte order mark": content(b"\xef\xbb\xbf{}"),
    "half a letter": content('{"\\ud800": 1}'),
    "a word": content('"config"'),
    "beyond a MiB": content('"' + "x" * MIB + '"'),
}
MODEL = (CONFIG, "model")
VALUES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "layers of a file of few": (CONFIG, edited(*MODEL, "mot", "layers", value=1024)),
    "views of layers": (CONFIG, edited(*MODEL, "vision", "layers", value=1024)),
    "vocabulary beyond 64 bits": (CONFIG, edited(*MODEL, "vocab_size", value=10**19)),
    "vocabulary beyond memory": (CONFIG, edited(*MODEL, "vocab_size", value=2**62)),
    "huge heads": (CONFIG, edited(*MODEL, "mot", "head_dim", value=2**31)),
    "huge image": (CONFIG, edited(*MODEL, "vision", "image_size", value=2**40)),
    "negative chunk": (CONFIG, edited(*MODEL, "chunk", value=-16)),
    "steps without end": (CONFIG, edited(*MODEL, "steps", value=2**62)),
    "rate of infinity": (CONFIG, edited(CONFIG, "embodiment", "control_rate", value=1e400)),
    "views of numbers": (CONFIG, edited(CONFIG, "embodiment", "views", value=[1, 2])),
    "format of a list": (CONFIG, edited(CONFIG, "format", value=[[[2]]])),
    "map beyond memory": (CONFIG, edited(CONFIG, "state_map", "width", value=2**62)),
    "slots beyond memory": (CONFIG, edited(CONFIG, "state_map", "slots", 0, "stop", value=2**62)),
    "remote code": (CONFIG, edited(CONFIG, "auto_map", value={"AutoModel": "code.Model"})),
    "spread beyond fp64": (STATS, edited(STATS, "action", "std", 0, value=1e400)),
    "spread of words": (STATS, edited(STATS, "action", "std", 0, value="1")),
    "spread of lists": (STATS, edited(STATS, "action", "std", value=[[]] * 4)),
    "many means": (STATS, edited(STATS, "state", "mean", value=[0.0] * 100_000)),
    "names of numbers": (STATS, edited(STATS, "state", "names", value=[1, 2, 3, 4])),
    "tokens of nothing": (TOKENIZER, content("{}")),
    "tokens of depth": (TOKENIZER, content("[" * 100_000)),
    "a header of 2^63": (WEIGHTS, weights("{}", length=1 << 63)),
    "a header of 16 MiB and one": (WEIGHTS, weights(b" " * (16 * MIB + 1))),
    "a header of spaces": (WEIGHTS, weights("{" + " " * (16 * MIB - 1))),
    "a header of tensors": (WEIGHTS, weights(sixteen_mib_of_tensors())),
    "a header of numbers": (WEIGHTS, weights('{"a":[' + "1," * (8 * MIB - 8) + "1]}")),
    "a header of five thousand": (
        WEIGHTS,
        weights("{" + ",".join(ENTRY % i for i in range(5_000)) + "}", b"\0"),
    ),
    "a header of depth": (WEIGHTS, weights('{"a":' + "[" * 30_000 + "]" * 30_000 + "}")),
    "a header of wide letters": (WEIGHTS, weights('{"' + "𝄞" * (4 * MIB - 4) + '":0}')),
    "a tensor of 2^62": (
        WEIGHTS,
        weights('{"a":{"dtype":"F32","shape":[0,4611686018427387904],"data_offsets":[0,0]}}'),
    ),
    "a tensor of a TiB": (
        WEIGHTS,
        weights('{"a":{"dtype":"F32","shape":[274877906944],"data_offsets":[0,1099511627776]}}'),
    ),
    "a name twice": (WEIGHTS, weights("{" + ENTRY % "a" + "," + ENTRY % "a" + "}")),
    "another model": (WEIGHTS, weights("{" + ENTRY % "a" + "}")),
}
CORPUS: dict[str, tuple[str, Callable[[Path], None]]] = {
    **{
        f"{file}: {kind}": (file, make)
        for file in (CONFIG, STATS, TOKENIZER, WEIGHTS)
        for kind, make in KINDS.items()
    },
    **{f"{file}: {kind}": (file, make) for file in (CONFIG, STATS) for kind, make in JSONS.items()},
    **VALUES,
}


class Stuck(BaseException):
    """Nothing came of a call."""


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    """A test that waits for a pipe ends."""

    def fire(number: int, frame: FrameType | None) -> None:
        raise Stuck

    before = signal.signal(signal.SIGALRM, fire)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refusal(call: Callable[[], object]) -> str:
    """What the call says, after it was shown to cost little: 100 ms of CPU time and 64 MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spent = []
    for _ in range(3):  # the best of three: what else runs here is not the call's
        begin = time.process_time()
        with pytest.raises(VlakernError):
            call()
        spent.append(time.process_time() - begin)
        if spent[-1] < 0.1:
            break
    assert min(spent) < 0.1, spent
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 << 10  # KiB
    tracemalloc.start()
    try:
        with pytest.raises(VlakernError) as caught:
            call()
        assert tracemalloc.get_traced_memory()[1] < 64 * MIB
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert text.isprintable(), "a sentence in one line"
    assert len(text) < 1500
    return text


@pytest.fixture(scope="module", autouse=True)
def _warm() -> None:
    """What the first call imports is not the corpus's."""
    vlakern.load(GOOD, device="cpu")


@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_policy_is_one_clear_error(name: str, tmp_path: Path) -> None:
    """A policy that ships, with one of its files made to do harm."""
    file, make = CORPUS[name]
    for path in GOOD.iterdir():
        if path.name != file:
            (tmp_path / path.name).symlink_to(path)
    make(tmp_path / file)
    said = refusal(lambda: vlakern.load(tmp_path, device="cpu"))
    assert str(file) in said


def test_the_corpus_is_large() -> None:
    """At least fifty, and each of its own name."""
    assert len(CORPUS) + len(INDICES) > 100


GOOD_FILE = struct.pack("<Q", 64) + ("{" + ENTRY % "a" + "}").ljust(64).encode()
INDICES: dict[str, tuple[Any, str]] = {
    "parent": ({"a": "../x.safetensors"}, "expected the bare name"),
    "absolute": ({"a": "/etc/x.safetensors"}, "expected the bare name"),
    "inside": ({"a": "below/x.safetensors"}, "expected the bare name"),
    "backslash": ({"a": "..\\x.safetensors"}, "expected the bare name"),
    "drive": ({"a": "c:x.safetensors"}, "expected the bare name"),
    "nothing": ({"a": ""}, "expected the bare name"),
    "dots": ({"a": ".."}, "expected the bare name"),
    "hidden": ({"a": ".x.safetensors"}, "expected the bare name"),
    "NUL": ({"a": "x\0.safetensors"}, "expected the bare name"),
    "newline": ({"a": "x\n.safetensors"}, "expected the bare name"),
    "number": ({"a": 1}, "expected the bare name"),
    "list": ({"a": ["x.safetensors"]}, "expected the bare name"),
    "pickle": ({"a": "pytorch_model.bin"}, "expected the bare name"),
    "endless": ({"a": "x" * 300 + ".safetensors"}, "expected the bare name"),
    "other kind": (["x.safetensors"], "has no weight_map"),
    "empty": ({}, "has no weight_map"),
    "lost file": ({"a": "none.safetensors"}, "none.safetensors is missing"),
    "lost tensor": ({"a": "x.safetensors", "b": "x.safetensors"}, "which lacks it"),
    "tensor of another file": ({"b": "x.safetensors"}, "places in 'no file'"),
    "tensor of two files": (
        {"a": "x.safetensors", "b": "y.safetensors"},
        r"y\.safetensors holds 'a', which .* places in 'x\.safetensors'",
    ),
    "link outwards": ({"a": "outwards.safetensors"}, "a link out of"),
    "link to a secret": ({"a": "passwords.safetensors"}, "a link out of"),
    "loop": ({"a": "loop.safetensors"}, "symbolic links|a link that leads nowhere"),
    "pipe": ({"a": "pipe.safetensors"}, "is a pipe"),
    "device": ({"a": "device.safetensors"}, "a link out of"),
    "directory": ({"a": "directory.safetensors"}, "is a directory"),
    "many files": (
        {f"t{i}": f"{i}.safetensors" for i in range(30_000)},
        "names 30000 files, at most 1000",
    ),
}


@pytest.mark.parametrize("name", INDICES)
def test_a_hostile_index_is_one_clear_error(name: str, tmp_path: Path) -> None:
    """No path leaves the directory, no name is of two files, and nothing waits."""
    places, sentence = INDICES[name]
    folder = tmp_path / "policy"
    folder.mkdir()
    (tmp_path / "x.safetensors").write_bytes(GOOD_FILE)
    for one in ("x.safetensors", "y.safetensors"):
        (folder / one).write_bytes(GOOD_FILE)
    (folder / "outwards.safetensors").symlink_to("../x.safetensors")
    (folder / "passwords.safetensors").symlink_to("/etc/passwd")
    (folder / "device.safetensors").symlink_to("/dev/zero")
    (folder / "loop.safetensors").symlink_to("loop.safetensors")
    (folder / "directory.safetensors").mkdir()
    os.mkfifo(folder / "pipe.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    with pytest.raises(VlakernError, match=sentence):
        open_directory(folder)
    refusal(lambda: open_directory(folder))


@pytest.mark.parametrize("kind", [*KINDS, *JSONS])
def test_an_index_of_another_kind_is_one_clear_error(kind: str, tmp_path: Path) -> None:
    """The index itself is no regular file, or no JSON that holds a map."""
    (KINDS | JSONS)[kind](tmp_path / INDEX)
    refusal(lambda: open_directory(tmp_path))
