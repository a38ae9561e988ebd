"""Messages that are wrong in a known way: structure, types, sizes, words."""

import random
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from vlakern.serve.codec import encode

__all__ = ["HEAVY", "KEYS", "VALUES", "WRONG", "array", "drawn", "packed", "parts"]

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.builds(
        lambda dtype, shape: np.zeros(shape, dtype),
        st.sampled_from(["|u1", "<f4", ">f4", "<i8", "|b1", "<f2"]),
        st.lists(st.integers(0, 4), max_size=4),
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        *("front", "observation/front", "images", "state", "observation/state", "prompt", "seed"),
        *("x", "prefix", "prefix/actions", "prefix/frozen", "prefix/form"),
    ]
)


def drawn(count: int, number: int) -> list[bytes]:
    """So many messages of any structure; the same ones for the same ``number``."""
    found: list[bytes] = []
    unhurried = [HealthCheck.too_slow, HealthCheck.data_too_large]

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=unhurried,
    )
    @given(st.dictionaries(KEYS, VALUES, max_size=6) | VALUES)
    def draw(value: object) -> None:
        found.append(encode(value))

    draw()
    return found


def array(dtype: Any = "|u1", shape: Any = (4, 5, 3), data: Any = bytes(60)) -> dict[bytes, Any]:
    """As openpi writes one down."""
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


def packed(value: Any) -> bytes:
    """Without openpi's arrays: whatever msgpack can say."""
    return msgpack.Packer().pack(value)


def parts(rng: random.Random) -> dict[str, Any]:
    """Of a message that is answered."""
    state = np.array([rng.random() for _ in range(8)], np.float32).tobytes()
    prompt = "pick " * rng.randint(1, 3)
    return {
        "front": array(data=rng.randbytes(60)),
        "state": array("<f4", [8], state),
        "prompt": prompt,
        "seed": rng.randrange(1 << 40),
    }


def _with(rng: random.Random, key: str, value: Any) -> bytes:
    return packed({**parts(rng), key: value})


def _raw(rng: random.Random, value: bytes) -> bytes:
    """With bytes in the place of a value."""
    data = packed({**parts(rng), "front": 0x7F})
    key = b"\xa5front"
    return data.replace(key + b"\x7f", key + value)


def _truncated(rng: random.Random) -> bytes:
    data = packed(parts(rng))
    return data[: rng.randrange(len(data))]


def _longer(rng: random.Random) -> bytes:
    return packed(parts(rng)) + rng.randbytes(rng.randint(1, 20))


def _root(rng: random.Random) -> bytes:
    number = rng.choice([rng.getrandbits(64), -rng.getrandbits(63), rng.random()])
    words = [None, True, rng.randbytes(9), str(rng.random()), [number], [parts(rng)], array()]
    return packed(rng.choice([number, *words]))


def _missing(rng: random.Random) -> bytes:
    found = parts(rng)
    del found[rng.choice(("state", "prompt"))]
    return packed(found)


def _unknown(rng: random.Random) -> bytes:
    return _with(rng, f"key{rng.getrandbits(40)}", rng.choice([1, None, "x", [], array()]))


WRONG_VALUES = {
    "front": [None, True, 1.5, "words", b"bytes", [1, 2], {"a": 1}, [[[0, 0, 0]]], [array()]],
    "state": [None, "words", b"bytes", {"a": 1}, ["x"], [[1], [2, 3]], [None], [{}], [b"1"]],
    "prompt": [None, 1, 0.5, b"pick", ["pick"], {}, True, array(), "x" * 5000],
    "seed": [-1, 1.5, "1", [1], True, 1 << 63, (1 << 64) - 1, b"1", -(1 << 63), array()],
    "request": [-2, 0.5, "2", [2], False, 1 << 63, array("<i8", [], bytes(8))],
}


def _type(rng: random.Random) -> bytes:
    key = rng.choice(sorted(WRONG_VALUES))
    return _with(rng, key, rng.choice(WRONG_VALUES[key]))


DTYPES = (
    *("O", "|O", "|O8", "V16", "|V9999999", "<U4", ">U9", "S3", "<M8[s]", "<m8", "c8", "<c16"),
    *("<f16", "f4,f4", "(2,)f4", "[('a','<f4')]", "{'names':['a'],'formats':['O']}", "", "\0"),
    *("object", "<u1u1", "<f3", "i", "float", "np.float32", "__import__('os')", "🤖", "|u1" * 99),
)


def _dtype(rng: random.Random) -> bytes:
    name = rng.choice([*DTYPES, None, 1, b"<f4", ["<f4"], [["x", "<f4"]], {"a": 1}, rng.random()])
    return _with(rng, rng.choice(("front", "state")), array(name, [3], rng.randbytes(12)))


def _shape(rng: random.Random) -> bytes:
    most, data = (1 << 31) - 1, rng.randbytes(rng.choice((0, 12, 60)))
    shape = rng.choice(
        [
            *([most] * 6, [1 << 31], [1 << 63], [(1 << 64) - 1] * 3, [-1], [-1, 3], [2, -6, -1]),
            *([1.0], [True] * 3, ["3"], [None], [[3]], None, 3, "3", b"\3", {}, [1] * 7, [1] * 64),
            *(
                [0, 1 << 40],
                [7, 11, 13],
                [rng.randrange(61, 1 << 31)],
                [4, 5, rng.randrange(4, 99)],
            ),
        ]
    )
    return _with(rng, "front", array("|u1", shape, data))


def _picture(rng: random.Random) -> bytes:
    shapes = [
        [4, 5],
        [4, 5, 4],
        [1, 5000, 3],
        [0, 5, 3],
        [2, 2, 3, 1],
        [4097, 1, 3],
        [9],
        [],
        [1, 3],
    ]
    shape = rng.choice(shapes)
    count = int(np.prod(shape))
    if rng.random() < 0.3:
        return _with(rng, "front", array("<f4", [4, 5, 3], rng.randbytes(240)))
    return _with(rng, "front", array("|u1", shape, rng.randbytes(count)))


def _not_finite(rng: random.Random) -> bytes:
    state = np.array([rng.random() for _ in range(8)])
    state[rng.randrange(8)] = rng.choice((np.nan, np.inf, -np.inf, 1e300))
    return _with(rng, "state", array("<f8", [8], state.tobytes()))


def _prefix(rng: random.Random) -> bytes:
    steps = array("<f4", [3, 2], bytes(24))
    found = {"actions": steps, "frozen": 1, "form": "frozen"}
    name = rng.choice(sorted(found))
    wrong = {
        "actions": [None, [[1.0, 2.0]], array("|u1"), array("<f4", [3], bytes(12)), {}, "frozen"],
        "frozen": [-1, 4, 1.0, True, None, "1", array("<i8", [], bytes(8)), [1], 1 << 63],
        "form": [None, "exact", "", b"frozen", steps, ["frozen"], {"a": "frozen"}, "x" * 999, 0],
    }
    if rng.random() < 0.2:
        del found[name]
    else:
        found[name] = rng.choice(wrong[name])
    return _with(rng, "prefix", found)


def _data(rng: random.Random) -> bytes:
    data = rng.choice([None, 1, "text", [1, 2], {}, True, 0.5])
    return _with(rng, rng.choice(("front", "state")), array(data=data))


def _deep(rng: random.Random) -> bytes:
    depth = rng.choice((17, 64, 511, 512, 1023, 1024, 1025, rng.randint(20, 3000)))
    one = rng.choice((b"\x91", b"\x81\xa1a", b"\x81\xa1a\x91", b"\xdc\0\1", b"\xdf\0\0\0\1\xa1x"))
    core = rng.choice((b"\xc0", b"", b"\x90", packed(array())))
    return one * depth + core if rng.random() < 0.5 else _raw(rng, one * depth + core)


def _twice(rng: random.Random) -> bytes:
    pairs = [(packed(key), packed(value)) for key, value in parts(rng).items()]
    key = rng.choice(["observation/front", "images/front", "observation.images.front"])
    again = rng.choice([("prompt", rng.random()), ("front", rng.random()), (key, array())])
    pairs.append((packed(again[0]), packed(again[1])))
    return bytes([0x80 | len(pairs)]) + b"".join(key + value for key, value in pairs)


def _scalar(rng: random.Random) -> bytes:
    value = rng.choice([(1 << 64) - 1, -(1 << 63), 0.5, "1", None, [1], b"1", {}])
    dtype = rng.choice(["|u1", "<i2", "O", "<U1", None, "|b1" * 4])
    scalar = {b"__npgeneric__": True, b"data": value, b"dtype": dtype}
    return _with(rng, rng.choice(("seed", "front", "x", "prompt")), scalar)


def _extension(rng: random.Random) -> bytes:
    data = rng.randbytes(rng.choice((0, 1, 2, 4, 8, 12, 16, 300)))
    one = packed(msgpack.ExtType(rng.randrange(128), data))
    time = rng.choice((b"\xd6\xff", b"\xd7\xff", b"\xc7\x0c\xff")) + rng.randbytes(12)
    value = rng.choice((one, time, one[:-1], b"\xc9\xff\xff\xff\xff\1"))
    return _raw(rng, value) if rng.random() < 0.7 else b"\x81" + value + b"\xc0"


def _words(rng: random.Random) -> bytes:
    bad = rng.choice(
        (b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80", b"\xf8\x88", b"\xe2\x82", b"\xc0\x80")
    )
    text = b"pick" + bad + rng.randbytes(rng.randrange(20))
    words = bytes([0xA0 | len(text)]) + text
    return _raw(rng, words) if rng.random() < 0.5 else b"\x81" + words + b"\x01"


def _liar(rng: random.Random) -> bytes:
    head = rng.choice((b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"))
    size = rng.choice((0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 1 << 24, rng.randrange(9999, 1 << 32)))
    return _raw(rng, head + size.to_bytes(4, "big") + rng.randbytes(rng.randrange(40)))


def _reserved(rng: random.Random) -> bytes:
    return _raw(rng, b"\xc1" * rng.randint(1, 9))


def _key(rng: random.Random) -> bytes:
    key = rng.choice([rng.getrandbits(63), rng.random(), None, True, rng.randbytes(9), b"front"])
    return packed({**parts(rng), key: 1})


def _long(rng: random.Random) -> bytes:
    key = rng.choice(("x" * 257, b"\0" * 999, "é" * 5000, "x" * 70_000))
    return packed({**parts(rng), key: {str(i): None for i in range(rng.randrange(9))}})


def _wide(rng: random.Random) -> bytes:
    """Little on its way, much at its end."""
    item = rng.choice((b"\xc0", b"\x80", b"\x90", b"\1", b"\xa0", b"\x81\xa1a\xc0", b"\xc7\0\5"))
    count = rng.choice((4097, 50_000, 200_000))
    if rng.random() < 0.5:
        return _raw(rng, b"\xdd" + count.to_bytes(4, "big") + item * count)
    inner = b"\xdc\x03\xe8" + item * 1000
    return _raw(rng, b"\xdc\0\x80" + inner * 128)


def _fan(rng: random.Random) -> bytes:
    """A long name times many names below it."""
    inner = {f"{i:x}": None for i in range(rng.choice((99, 4000, 30_000)))}
    return packed({**parts(rng), "x" * rng.choice((256, 9999, 1 << 18)): inner})


WRONG: dict[str, Callable[[random.Random], bytes]] = {
    "truncated": _truncated,
    "longer": _longer,
    "root": _root,
    "missing": _missing,
    "unknown": _unknown,
    "type": _type,
    "dtype": _dtype,
    "shape": _shape,
    "data": _data,
    "picture": _picture,
    "not finite": _not_finite,
    "deep": _deep,
    "twice": _twice,
    "scalar": _scalar,
    "extension": _extension,
    "words": _words,
    "liar": _liar,
    "reserved": _reserved,
    "prefix": _prefix,
    "key": _key,
    "long": _long,
}
HEAVY: dict[str, Callable[[random.Random], bytes]] = {"wide": _wide, "fan": _fan}
