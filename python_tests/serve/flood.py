"""Malformed frames alone, as many as a server can refuse: one process, several connections."""

import json
import re
import select
import socket
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

from python_tests.serve.fuzzing import UPGRADE, Corpus, Frames, frame, server_frames
from python_tests.serve.hosted import Served
from python_tests.serve.wrong import HEAVY, WRONG, drawn

__all__ = ["AT_ONCE", "REFUSALS", "WARM", "Flood", "Malformed", "main", "started"]

AT_ONCE = 6  # of the server's 8; the others are for those who behave
WARM = "warm"
PATIENCE = 12  # turns of 5 s
MOST_DRAWN, MOST_GROWN = 300, 1_000  # messages by Hypothesis, tries for new ways by coverage
# Goodbyes of RFC 6455 that a mistake gets, and openpi's for a message that cannot be answered.
REFUSALS = {1002: "protocol", 1007: "text", 1009: "size", 1011: "message"}
# To half a frame and the end of the stream a server says nothing, to a goodbye its echo.
BROKEN = (
    *("opcode", "reserved", "bare", "huge", "enormous", "lost piece", "cut control"),
    *("long control", "bad goodbye", "second beginning"),
)
SAID = re.compile(r"error [0-9a-f]{8}(: .{1,400})?")
FULL = b"HTTP/1.1 503"
SECRETS = ("Traceback", 'File "', "site-packages", "vlakern/", "object at 0x")
RESET = struct.pack("ii", 1, 0)  # no port waits for late packets of a connection that is over


class Malformed:
    """Frames that a server has to refuse; ``count`` of them are about to be made.

    Attributes:
        made: how many by way.
        distinct: hashes of them.
    """

    def __init__(self, seed: int, count: int) -> None:
        self._corpus = Corpus(seed)
        self._drawn = drawn(min(count // 10, MOST_DRAWN), seed)
        for data in self._drawn:
            self._corpus.try_(data)
        self._corpus.grow(min(count, MOST_GROWN))
        self._frames, self._rng = Frames(self._corpus, {}), self._corpus.rng
        self._wrong, self._heavy = list(WRONG.items()), list(HEAVY.items())
        self.made: Counter[str] = Counter()
        self.distinct: set[int] = set()

    def next(self) -> tuple[bytes, bool]:
        """Frames of one mistake, and whether all but their message keeps to the protocol."""
        way = self._rng.random()
        if way < 0.25:
            kind = self._rng.choice(BROKEN)
            data, whole = self._frames.malformed(kind), False
        else:
            kind, message = self._message(way)
            data, whole = self._framed(message, 1 if kind == "text" else 2), True
        self.made[kind] += 1
        self.distinct.add(hash(data))
        return data, whole

    def _message(self, way: float) -> tuple[str, bytes]:
        rng = self._rng
        if way < 0.5:
            return "coverage", self._corpus.mutant()
        if way < 0.6:
            data = bytearray(rng.choice(self._drawn))
            data[rng.randrange(len(data)) :][:1] = rng.randbytes(rng.randrange(3))
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.randrange(2)] = rng.randbytes(rng.randrange(3))
            return "hypothesis", bytes(data)
        if way < 0.65:
            words, noise = str(rng.random()).encode(), rng.randbytes(rng.randrange(99))
            return "text", words + noise * rng.randrange(2)
        kind, make = rng.choice(self._heavy if way > 0.998 else self._wrong)
        return kind, make(rng)

    def _framed(self, data: bytes, opcode: int) -> bytes:
        rng = self._rng
        if rng.random() < 0.85:
            return frame(rng, opcode, data)
        found, at = b"", 0
        for _ in range(rng.randint(1, 5)):
            end = rng.randint(at, len(data))
            found += frame(rng, opcode, data[at:end], fin=False)
            found += frame(rng, 9, b"between") if rng.random() < 0.2 else b""
            opcode, at = 0, end
        return found + frame(rng, opcode, data[at:])


class _Peer:
    """One connection: the handshake, then malformed frames until it ends."""

    def __init__(self, port: int, malformed: tuple[bytes, bool]) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.found, self.messages, self.waiting = b"", 0, b""
        data, whole = malformed
        # A broken frame in one packet with the handshake gets no answer, since none has begun.
        self.waiting = b"" if whole else data
        self.socket.sendall(UPGRADE + (data if whole else b""))


class Flood:
    """Sends malformed frames to ``port`` until the server has refused so many.

    Attributes:
        refused: goodbyes of the server by code.
        answered: changed messages that were still right; the same connection got another.
        full: handshakes refused since connections before them have not quite ended.
        gone: connections without a goodbye.
    """

    def __init__(self, port: int, blind: bool, malformed: Malformed) -> None:
        self._port, self._blind, self._malformed = port, blind, malformed
        self._peers: dict[int, _Peer] = {}
        self._poll = select.epoll()
        self.refused: Counter[int] = Counter()
        self.answered = self.full = self.gone = 0

    def run(self, count: int) -> None:
        """Raises ``TimeoutError`` where the server says nothing to anybody for a minute."""
        for _ in range(AT_ONCE):
            self._begin()
        silent = 0  # turns: a machine that was stopped loses one, whatever time has passed
        while self.refused.total() < count:
            ready = self._poll.poll(5)
            silent = 0 if ready else silent + 1
            if silent == PATIENCE:
                raise TimeoutError("the server says nothing")
            for number, _ in ready:
                self._heard(self._peers[number])
        for peer in list(self._peers.values()):
            self._end(peer)

    def _begin(self) -> None:
        peer = _Peer(self._port, self._malformed.next())
        self._peers[peer.socket.fileno()] = peer
        self._poll.register(peer.socket.fileno(), select.EPOLLIN)

    def _end(self, peer: _Peer) -> None:
        number = peer.socket.fileno()
        self._poll.unregister(number)
        del self._peers[number]
        peer.socket.close()

    def _heard(self, peer: _Peer) -> None:
        try:
            more = peer.socket.recv(1 << 16)
        except ConnectionResetError:
            more = b""
        peer.found += more
        frames = server_frames(peer.found)
        if frames and frames[-1][0] == 8:
            self._judge(frames)
        elif more:
            self._go_on(peer, sum(opcode == 2 for opcode, _ in frames))
            return
        elif peer.found.startswith(FULL):
            self.full += 1
        else:
            self.gone += 1
        self._end(peer)
        self._begin()

    def _go_on(self, peer: _Peer, messages: int) -> None:
        """With a mistake behind the server's first message, and behind every other one of them."""
        if messages == peer.messages:
            return
        self.answered += messages - max(peer.messages, 1)
        peer.messages = messages
        if messages > 1 and not peer.waiting:
            peer.waiting = self._malformed.next()[0]
        data, peer.waiting = peer.waiting, b""
        try:
            peer.socket.sendall(data)
        except (ConnectionResetError, BrokenPipeError):
            return  # its goodbye is still to be read

    def _judge(self, frames: list[tuple[int, bytes]]) -> None:
        (code,) = struct.unpack(">H", frames[-1][1][:2])
        words = [data.decode() for opcode, data in frames if opcode == 1]
        said = [*words, frames[-1][1][2:].decode()]
        assert not any(one in line for line in said for one in SECRETS), said
        if code == 1011:
            assert len(words) == 1, said
            words = words[0]
            found = SAID.fullmatch(words)
            assert found is not None, words
            assert words.isprintable(), words
            assert (found[1] is None) == self._blind, words
        else:
            assert not words, words
        assert code in REFUSALS, (code, said)
        self.refused[code] += 1


def started(served: Served, count: int, seed: int, blind: bool = False) -> "subprocess.Popen[str]":
    """A process of its own that floods; it prints what it counted as JSON."""
    given = f"{served.port}, {count}, {seed}, {blind}"
    return subprocess.Popen(
        [sys.executable, "-c", f"from python_tests.serve.flood import main; main({given})"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def main(port: int, count: int, seed: int, blind: bool) -> None:
    """Prints ``WARM`` after a tenth, and in the end, as JSON, what :class:`Flood` has counted and
    ``{"made": {way: n}, "distinct": n}``."""
    malformed = Malformed(seed, count)
    flood = Flood(port, blind, malformed)
    flood.run(count // 10)
    print(WARM, flush=True)
    flood.run(count)
    names = ("refused", "answered", "full", "gone")
    counts = {name: getattr(flood, name) for name in names}
    print(json.dumps({**counts, "made": malformed.made, "distinct": len(malformed.distinct)}))
