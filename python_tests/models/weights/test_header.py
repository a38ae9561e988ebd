"""The strict reader of safetensors headers: what it takes the safetensors library takes, too."""

import json
import os
import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from vlakern.errors import VlakernError
from vlakern.models.weights.header import DTYPES, HeaderError, read_header
from vlakern.models.weights.weights_file import open_tensors

MUTANTS = 10_000
TENSORS = {
    "layers.0.weight": torch.arange(12, dtype=torch.float32).view(3, 4),
    "layers.0.bias": torch.arange(3, dtype=torch.bfloat16),
    "steps": torch.tensor(7, dtype=torch.int64),
    "none": torch.empty(0, 5, dtype=torch.float16),
    "flags": torch.tensor([True, False, True]),
}


def test_every_dtype_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    """Names, shapes and bits of one tensor of each dtype, at odd and even places."""
    rng = torch.Generator().manual_seed(3)
    tensors = {}
    for i, (name, dtype) in enumerate(DTYPES.items()):
        top = 2 if dtype == torch.bool else 256
        drawn = torch.randint(top, (i % 3 + 1, 3, dtype.itemsize), generator=rng)
        tensors[name] = drawn.to(torch.uint8).view(dtype).squeeze(-1)
    content = save(tensors | TENSORS, metadata={"format": "pt", "note": 'words, {"a": [1]}'})
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    found, peer = open_tensors(path), load(content)
    assert set(found.infos) == set(peer)
    for name, tensor in peer.items():
        assert same(found(name), tensor), name


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal bit by bit, NaN too."""
    alike = found.dtype == expected.dtype and found.shape == expected.shape
    flat = [one.contiguous().view(-1).view(torch.uint8) for one in (found, expected)]
    return alike and torch.equal(*flat)


def test_values_that_lie_askew_are_read(tmp_path: Path) -> None:
    """A header of odd length and a byte before the numbers: torch alone would refuse the view."""
    header = {
        "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(header, b"\x05" + struct.pack("<2f", 1.5, -2)))
    assert open_tensors(path)("b").tolist() == [1.5, -2]


def file_of(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def one(**changes: Any) -> dict[str, Any]:
    """The header of one tensor of eight bytes, changed."""
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


BAD = {
    "dtype of nothing": (one(dtype="F128"), "has dtype 'F128', which is unknown"),
    "dtype of no word": (one(dtype=[1]), r"has dtype \[1\]"),
    "negative": (one(shape=[-2]), r"has shape \[-2\]"),
    "two negatives": (one(shape=[-1, -2]), r"has shape \[-1, -2\]"),
    "a half": (one(shape=[2.0]), r"has shape \[2.0\]"),
    "a truth": (one(shape=[True, 2]), r"has shape \[True, 2\]"),
    "too many dims": (one(shape=[1] * 8 + [2]), "has shape a list of 9"),
    "product beyond 64 bits": (one(shape=[2**32, 2**32]), "has the absurd shape"),
    "product that wraps to 2": (one(shape=[2**48, 2**16, 2]), "has the absurd shape"),
    "hidden behind a zero": (one(shape=[0, 2**47, 2**47], data_offsets=[0, 0]), "the absurd shape"),
    "huge behind a zero": (one(shape=[0, 2**62], data_offsets=[0, 0]), "has shape"),
    "shape of no list": (one(shape=2), "has shape 2"),
    "offsets swapped": (one(data_offsets=[8, 0]), "needs 8 bytes"),
    "one offset": (one(data_offsets=[8]), r"has data_offsets \[8\]"),
    "three offsets": (one(data_offsets=[0, 8, 8]), r"has data_offsets \[0, 8, 8\]"),
    "offset below": (one(data_offsets=[-8, 0]), r"has data_offsets \[-8, 0\]"),
    "shape of another size": (one(shape=[3]), r"of F32 \[3\] needs 12 bytes"),
    "dtype of another size": (one(dtype="F64"), r"of F64 \[2\] needs 16 bytes"),
    "unknown key": (one(strides=[1]), "is not described by data_offsets, dtype, shape"),
    "missing key": ({"a": {"dtype": "F32", "shape": [2]}}, "is not described by"),
    "no object": ({"a": [1]}, "is not described by"),
    "no name": ({"": one()["a"]}, "'' is no name for a tensor"),
    "endless name": ({"n" * 1000: one()["a"]}, "is no name for a tensor"),
    "name of half a letter": (
        b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        "is no name for a tensor",
    ),
    "name of terminal codes": ({"\x1b[2J": one()["a"]}, "is no name for a tensor"),
    "metadata of numbers": ({"__metadata__": {"a": 1}} | one(), "are not words by name"),
    "metadata of nothing": ({"__metadata__": None} | one(), "are not words by name"),
    "a gap": (one(data_offsets=[8, 16]), "leaves a gap before it"),
    "overlap": (one() | {"b": one()["a"]}, "overlaps the tensor before it"),
    "half an overlap": (
        one() | {"b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
        "overlaps the tensor before it",
    ),
    "beyond the end": (one(shape=[4], data_offsets=[0, 16]), "8 bytes at its end are missing"),
    "more than it says": (one(shape=[1], data_offsets=[0, 4]), "4 bytes at its end belong to no"),
    "no tensors": ({}, "8 bytes at its end belong to no tensor"),
    "a list": (b"[]", "is not a JSON object"),
    "space before it": (b" {}", "is not a JSON object"),
    "same name twice": (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        "the key 'a' appears twice",
    ),
    "same key twice": (
        b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        "the key 'dtype' appears twice",
    ),
    "deep": (b'{"a":' + b"[" * 1000 + b"]" * 1000 + b"}", "nested deeper than 64"),
    "not a number": (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', "NaN is not"),
    "an endless number": (b'{"a":{"shape":[1' + b"0" * 10**6 + b"]}}", "more than 64 bits"),
    "too many tensors": (
        {f"t{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(5_001)},
        "holds 5001 tensors, at most 5000",
    ),
    "very many tensors": (
        b"{"
        + b",".join(
            b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % i for i in range(250_000)
        )
        + b"}",
        "more than 32768 lists",
    ),
    "very many numbers": (b'{"a":[' + b"1," * ((8 << 20) - 8) + b"1]}", "200000 values"),
    "sixteen MiB of nothing": (b"{" + b" " * ((16 << 20) - 1), "its header: Expecting"),
    "sixteen MiB of a name": (b'{"' + b"n" * ((16 << 20) - 8) + b'":0}', "is no name"),
    "sixteen MiB of wide letters": (
        ('{"' + "𝄞" * ((4 << 20) - 2) + '":0}').encode(),
        "letters that are not ASCII",
    ),
    "cut in a word": (b'{"a', "its header: Unterminated"),
    "no text": (b"{\xff\xff}", "its header: 'utf-8' codec"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_header_is_named(name: str, tmp_path: Path) -> None:
    """What is wrong, in half a sentence, and nothing of the rest is read."""
    header, sentence = BAD[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(header, bytes(8)))
    with path.open("rb") as file, pytest.raises(HeaderError, match=sentence) as caught:
        read_header(file)
    assert len(str(caught.value)) < 400


@pytest.fixture
def memory() -> Iterator[int]:
    """A file in memory: to write ten thousand on a disk takes minutes."""
    handle = os.memfd_create("mutant")
    yield handle
    os.close(handle)


def test_ten_thousand_mutants_are_refused_or_right(memory: int, seed: int) -> None:
    """What is accepted, the safetensors library reads alike; the rest is one clear error each."""
    rng, good = random.Random(seed), save(TENSORS, metadata={"format": "pt"})
    path, accepted = Path(f"/proc/self/fd/{memory}"), 0
    said: list[str] = []
    begin = time.process_time()
    for _ in range(MUTANTS):
        content = mutant(good, rng)
        os.ftruncate(memory, 0)
        os.pwrite(memory, content, 0)
        try:
            found = open_tensors(path)
        except VlakernError as error:
            said.append(str(error))
            continue
        accepted += 1
        peer = load(content)
        assert set(found.infos) == set(peer)
        assert all(same(found(name), tensor) for name, tensor in peer.items())
    assert all("\n" not in text and len(text) < 700 for text in said)
    # Both ends are tried: changes that matter, and some that keep a file a file.
    assert 100 < accepted < MUTANTS // 2
    assert (time.process_time() - begin) / MUTANTS < 0.01


def mutant(good: bytes, rng: random.Random) -> bytes:
    """A file with one to three changes, most of which are to its header."""
    length = int.from_bytes(good[:8], "little")
    header, data = good[8 : 8 + length], good[8 + length :]
    for _ in range(rng.randint(1, 3)):
        header = rng.choice(CHANGES)(header, rng)
    size = len(header)
    if rng.random() < 0.1:
        size = rng.choice([0, 1, size - 1, size + 1, size + len(data), 2**24 + 1, 2**63, 2**64 - 1])
    if rng.random() < 0.1:
        data = rng.choice([b"", data[:-1], data + b"\0", data[1:]])
    return (max(size, 0) % 2**64).to_bytes(8, "little") + header + data


VALUES = (
    b"0 -1 1 2 3 4 5 12 48 54 -0 1.0 0.5 1e3 1e400 9223372036854775808 4294967296 null true NaN"
    b' Infinity [] {} [0] [[1]] "" "F32" "BF16" "I64" "F8" "\\ud800" "a" [0,48] [48,54] '
).split()
WORDS = (b'"dtype"', b'"shape"', b'"data_offsets"', b'"steps"', b'"none"', b'"F32"', b'"BF16"')


def flip(header: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(header) or 1)
    return header[:at] + bytes([rng.randrange(256)]) + header[at + 1 :]


def insert(header: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(header) + 1)
    return header[:at] + rng.choice([b" ", b",", b"{", b"}", b"[", b"]", b'"', b"\\"]) + header[at:]


def remove(header: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(header) + 1)
    return header[:at] + header[at + rng.randint(1, 8) :]


def double(header: bytes, rng: random.Random) -> bytes:
    begin, end = sorted(rng.randrange(len(header) + 1) for _ in range(2))
    return header[:end] + header[begin:end] + header[end:]


def replace_number(header: bytes, rng: random.Random) -> bytes:
    places = [i for i, letter in enumerate(header) if chr(letter).isdigit()]
    at = rng.choice(places or [0])
    return header[:at] + rng.choice(VALUES) + header[at + 1 :]


def swap_words(header: bytes, rng: random.Random) -> bytes:
    found, put = rng.sample(WORDS, 2)
    return header.replace(found, put, rng.randint(1, 2))


def change_value(header: bytes, rng: random.Random) -> bytes:
    """A mutant that is still JSON, if it was."""
    try:
        values = json.loads(header)
        entry = values[rng.choice(sorted(values))]
        entry[rng.choice(sorted(entry))] = json.loads(rng.choice(VALUES))
        return json.dumps(values).encode()
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return header + b" "


def reorder(header: bytes, rng: random.Random) -> bytes:
    """The same entries in another order: still a good file, if it was one."""
    try:
        pairs = list(json.loads(header).items())
    except (ValueError, AttributeError, RecursionError):
        return header
    rng.shuffle(pairs)
    return json.dumps(dict(pairs)).encode()


CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flip,
    insert,
    remove,
    double,
    replace_number,
    swap_words,
    change_value,
    reorder,
)
