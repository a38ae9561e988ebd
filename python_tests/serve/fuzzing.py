"""Messages and frames that no client would send, found by coverage."""

import contextlib
import itertools
import random
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np

from python_tests.serve.hosted import KEYS, Served
from vlakern.errors import InputError
from vlakern.serve import codec, prefix, wire

__all__ = [
    "HARMFUL",
    "UPGRADE",
    "Corpus",
    "Frames",
    "Fuzzer",
    "answered",
    "frame",
    "good",
    "server_frames",
]

WATCHED = (codec.__file__, wire.__file__, prefix.__file__)
TOKENS = (
    *(b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape", b"prompt", b"seed", b"front"),
    *(b"\xa3<f4", b"\xa3|u1", b"\xa3<i8", b"\xa2|O", b"\xa3<U9", b"\xa9|V9999999", b"\xc1"),
    *(b"\xc4\x0b__ndarray__\xc3", b"\xc4\x04data\xc4\x00", b"\xc4\x05shape\x90", b"\x80", b"\x90"),
    *(b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\x7f\xff"),
    *(b"\xcf" + b"\xff" * 8, b"\xcb\x7f\xf0" + b"\0" * 6, b"\x91" * 20, b"\x81\xa1a" * 20),
    *(b"\xc7\x04\x05abcd", b"\xd6\xff" + b"\0" * 4, b"\xc0", b"\xc2", b"\xc3", b"\xff"),
)


def good(rng: random.Random, **more: Any) -> bytes:
    """A message that is answered."""
    image = np.full((rng.randint(1, 9), rng.randint(4, 9), 3), rng.randrange(256), np.uint8)
    state = np.arange(rng.randint(1, 9)).astype(rng.choice(["<f4", "<f8", ">f4", "<i4"]))
    return codec.encode({"front": image, "state": state, "prompt": "pick", "seed": 1, **more})


def answered(data: bytes) -> None:
    """What the server does with a message before the policy sees it."""
    wire.observation(codec.decode(data), KEYS)


class Corpus:
    """Messages of which each takes a way through the code that no other took."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.edges: set[tuple[str, int, int]] = set()
        self.messages: list[bytes] = []
        self.refused = 0
        for _ in range(4):
            self.try_(good(self.rng))
        self.try_(codec.encode({"state": [1, 2.5, -3], "prompt": "x", "images": {"front": None}}))
        told = {"actions": np.zeros((3, 2), np.float32), "frozen": 1, "form": "frozen"}
        self.try_(codec.encode({"state": [1.0], "prompt": "x", "prefix": told}))
        self.try_(codec.encode({"state": np.float32(1.5), "prompt": "x", "seed": np.int64(3)}))

    def try_(self, data: bytes) -> bool:
        """Whether it found a new way; ``InputError`` alone may come out of it."""
        found: set[tuple[str, int, int]] = set()
        before = sys.gettrace()
        sys.settrace(_tracer(found))
        try:
            answered(data)
        except InputError:
            self.refused += 1
        finally:
            sys.settrace(before)
        new = not found <= self.edges
        if new:
            self.edges |= found
            self.messages.append(data)
        return new

    def grow(self, tries: int) -> None:
        for _ in range(tries):
            self.try_(self.mutant())

    def mutant(self) -> bytes:
        """A message of the corpus after a few changes."""
        rng, data = self.rng, bytearray(self.rng.choice(self.messages))
        for _ in range(1 + min(int(rng.expovariate(0.7)), 8)):
            at = rng.randrange(len(data) + 1)
            rng.choice((_flip, _set, _cut, _token, _token, self._splice, _repeat))(rng, data, at)
        return bytes(data[:4096])

    def _splice(self, rng: random.Random, data: bytearray, at: int) -> None:
        other = rng.choice(self.messages)
        begin = rng.randrange(len(other) + 1)
        data[at : at + rng.randrange(20)] = other[begin : begin + rng.randrange(60)]


def _tracer(found: set[tuple[str, int, int]]) -> Callable[..., Any]:
    def enter(frame: FrameType, event: str, arg: object) -> Any:
        name = frame.f_code.co_filename
        if name not in WATCHED:
            return None
        before = 0

        def line(frame: FrameType, event: str, arg: object) -> Any:
            nonlocal before
            found.add((name, before, frame.f_lineno))
            before = frame.f_lineno
            return line

        return line

    return enter


def _flip(rng: random.Random, data: bytearray, at: int) -> None:
    if at < len(data):
        data[at] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, at: int) -> None:
    data[at : at + 1] = bytes([rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))])


def _cut(rng: random.Random, data: bytearray, at: int) -> None:
    del data[at : at + rng.randint(1, 12)]


def _token(rng: random.Random, data: bytearray, at: int) -> None:
    token = rng.choice(TOKENS)
    data[at : at + (len(token) if rng.random() < 0.5 else 0)] = token


def _repeat(rng: random.Random, data: bytearray, at: int) -> None:
    data[at:at] = data[at : at + rng.randrange(30)] * rng.randrange(4)


def frame(rng: random.Random, opcode: int, data: bytes, fin: bool = True, **bad: Any) -> bytes:
    """A client's frame; ``bad`` says what is wrong with it."""
    size = bad.get("size", len(data))
    first = (fin << 7) | bad.get("reserved", 0) | opcode
    masked = 0 if bad.get("bare") else 128
    if size < 126:
        head = struct.pack(">BB", first, masked | size)
    elif size < 1 << 16:
        head = struct.pack(">BBH", first, masked | 126, size)
    else:
        head = struct.pack(">BBQ", first, masked | 127, size)
    if bad.get("bare"):
        return head + data
    if rng.random() < 0.9:
        return head + b"\0\0\0\0" + data
    mask = rng.randbytes(4)
    stream = np.frombuffer((mask * (len(data) // 4 + 1))[: len(data)], np.uint8)
    return head + mask + (np.frombuffer(data, np.uint8) ^ stream).tobytes()


@dataclass
class Frames:
    """Batches of frames for one connection each: some that it survives, then one that it does not.

    Attributes:
        sent: frames so far, by kind.
    """

    corpus: Corpus
    sent: dict[str, int]

    def harmless(self) -> tuple[bytes, int]:
        """Frames after which a connection goes on, and how many replies the server owes."""
        rng = self.corpus.rng
        kinds = [
            rng.choice(("ping", "pong", "ping", "pong", "request", "pieces"))
            for _ in range(rng.randint(0, 5))
        ]
        owed = sum(kind in ("request", "pieces") for kind in kinds)
        return b"".join(self._harmless(kind) for kind in kinds), owed

    def harmful(self) -> tuple[bytes, bool]:
        """A frame that ends a connection, and whether the server sees that it is wrong."""
        kind = self.corpus.rng.choice(HARMFUL)
        return self.malformed(kind), kind not in ("noise", "end")

    def _count(self, kind: str, frames: int = 1) -> None:
        self.sent[kind] = self.sent.get(kind, 0) + frames

    def _harmless(self, kind: str) -> bytes:
        rng = self.corpus.rng
        if kind in ("ping", "pong"):
            self._count(kind)
            data = rng.choice(self.corpus.messages)[: rng.randrange(126)]
            return frame(rng, 9 if kind == "ping" else 10, data)
        data = good(rng)
        if kind == "request":
            self._count(kind)
            return frame(rng, 2, data)
        cuts = [
            0,
            *sorted(rng.randrange(len(data) + 1) for _ in range(rng.randint(1, 6))),
            len(data),
        ]
        parts = [data[a:b] for a, b in itertools.pairwise(cuts)]
        found = []
        for i, part in enumerate(parts):
            found.append(frame(rng, 0 if i else 2, part, fin=i == len(parts) - 1))
            if rng.random() < 0.3:  # control frames may come between
                found.append(frame(rng, 9, b"between"))
        self._count(kind, len(found))
        return b"".join(found)

    def malformed(self, kind: str) -> bytes:
        """Of a kind of ``HARMFUL``."""
        rng = self.corpus.rng
        self._count(kind)
        data = self.corpus.mutant()
        bad: dict[str, bytes] = {
            "message": frame(rng, 2, data),
            "words": frame(rng, 1, data),
            "opcode": frame(rng, rng.choice((3, 4, 5, 6, 7, 11, 12, 13, 14, 15)), data),
            "reserved": frame(rng, 2, data, reserved=rng.choice((16, 32, 64, 112))),
            "bare": frame(rng, 2, data, bare=True),
            "huge": frame(rng, 2, data, size=(1 << 24) + rng.randint(1, 9)),
            "enormous": frame(rng, 2, data, size=(1 << 63) + rng.randrange(1 << 62)),
            "lost piece": frame(rng, 0, data),
            "cut control": frame(rng, 9, data[:99], fin=False),
            "long control": frame(rng, 9, data.ljust(126, b"x")),
            "goodbye": frame(rng, 8, rng.randbytes(rng.randrange(126))),
            "bad goodbye": frame(rng, 8, _goodbye(rng)),
            "second beginning": frame(rng, 2, data[:9], fin=False) + frame(rng, 2, data),
            "noise": rng.randbytes(rng.randint(1, 300)),
            "end": frame(rng, 2, data, size=len(data) + rng.randint(1, 99)),
        }
        return bad[kind]


HARMFUL = ("message",) * 8 + (
    *("words", "opcode", "reserved", "bare", "huge", "enormous", "lost piece", "cut control"),
    *("long control", "goodbye", "bad goodbye", "second beginning", "noise", "end"),
)


def _goodbye(rng: random.Random) -> bytes:
    """What RFC 6455, section 5.5.1, does not allow: half a code, one of no peer, no UTF-8."""
    wrong = rng.choice((0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, rng.randint(5001, 65535)))
    why = rng.randbytes(rng.randrange(99))
    return rng.choice((why[:1] or b"\3", struct.pack(">H", wrong) + why, b"\x03\xe8\xff" + why))


class Fuzzer(threading.Thread):
    """Sends frames until so many are out.

    Attributes:
        frames: what was sent.
        connections: that were opened for it.
        error: what went wrong with the server.
    """

    def __init__(self, served: Served, frames: Frames, count: int) -> None:
        super().__init__(daemon=True)
        self.served, self.frames, self.count = served, frames, count
        self.connections = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while sum(self.frames.sent.values()) < self.count:
                self._connection()
        except (OSError, AssertionError) as error:
            self.error = error

    def _connection(self) -> None:
        good, owed = self.frames.harmless()
        bad, seen = self.frames.harmful()
        with socket.create_connection(("127.0.0.1", self.served.port), timeout=60) as peer:
            self.connections += 1
            peer.sendall(UPGRADE + good)
            found = _read(peer, b"", 1 + owed)
            assert _opcodes(found).count(2) == 1 + owed, (owed, found[-200:])
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                peer.sendall(bad)
                if not seen:
                    peer.shutdown(socket.SHUT_WR)
                _read(peer, found, 2 + owed)  # a change may leave a message that is answered


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def _read(peer: socket.socket, found: bytes, messages: int) -> bytes:
    """Until so many messages have come, or the server's goodbye or end."""
    while True:
        more = peer.recv(1 << 16)
        found += more
        opcodes = _opcodes(found)
        if not more or 8 in opcodes or opcodes.count(2) >= messages:
            return found


def _opcodes(found: bytes) -> list[int]:
    return [opcode for opcode, _ in server_frames(found)]


def server_frames(found: bytes) -> list[tuple[int, bytes]]:
    """Opcodes and payloads of the server's frames, behind its HTTP response."""
    at, frames = found.find(b"\r\n\r\n") + 4, []
    while at >= 4 and at + 2 <= len(found):
        size, head = found[at + 1], 2
        if size == 126:
            (size,), head = struct.unpack(">H", found[at + 2 : at + 4].ljust(2)), 4
        if at + head + size > len(found):
            break
        frames.append((found[at] & 15, found[at + head : at + head + size]))
        at += head + size
    return frames
