"""A client's websocket: the library's for any address, a leaner one to this machine.

The lean one has no thread: what comes is read when a request waits for it or before the next one is
sent, so that nothing is handed from thread to thread. Its messages are one frame each, masked where
they are put together. Handshake and incoming frames are the library's, without its sockets.
"""

import contextlib
import itertools
import secrets
import socket
import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from websockets.client import ClientProtocol
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.sync.client import connect
from websockets.uri import parse_uri

from vlakern.serve.codec import MOST_BYTES
from vlakern.serve.settings import loopback

__all__ = ["Transport", "opened"]

FRAGMENT, SMALL = 100_000, 4096  # bytes
HEAD = 16  # bytes before a message, for a head of 14 and whole words behind it
READ = 1 << 16  # bytes at a time
GOODBYE = 1.0  # [s]


class Transport(Protocol):
    """A connection that sends and receives whole messages."""

    def send(self, pieces: Sequence[bytes | memoryview], timeout: float) -> None: ...

    def recv(self, timeout: float) -> bytes | str: ...

    def drain(self) -> int:
        """Throws away what nobody asked for; how many messages that was."""
        ...

    def gone(self) -> bool:
        """Whether the server has closed the connection, as far as one knows without waiting."""
        ...

    def close(self) -> None:
        """With a word of goodbye, where there is one."""
        ...

    def abandon(self) -> None:
        """Without waiting for anyone."""
        ...


def opened(url: str, token: str | None, timeout: float) -> Transport:
    """After the handshake.

    Raises:
        InvalidURI, InvalidHandshake, OSError: there is no such server.
    """
    where = parse_uri(url)
    if loopback(where.host) and not where.secure:
        return _LocalSocket(url, token, timeout)
    return _LibrarySocket(url, token, timeout)


def _headers(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Api-Key {token}"} if token else {}


class _LocalSocket:
    def __init__(self, url: str, token: str | None, timeout: float) -> None:
        where, end = parse_uri(url), time.monotonic() + timeout
        self._protocol = ClientProtocol(where, max_size=MOST_BYTES)
        self._messages: deque[bytes | str] = deque()
        self._parts: list[Frame] = []
        self._ended = False
        self._buffer = np.zeros(0, np.uint64)
        with contextlib.ExitStack() as failed:
            self._socket = socket.create_connection((where.host, where.port), timeout)
            failed.callback(self._socket.close)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = self._protocol.connect()
            request.headers.update(_headers(token))
            self._protocol.send_request(request)
            self._answer()
            while self._protocol.state is State.CONNECTING and not self._ended:
                self._read(end)
            if self._protocol.handshake_exc is not None:
                raise self._protocol.handshake_exc
            failed.pop_all()

    def send(self, pieces: Sequence[bytes | memoryview], timeout: float) -> None:
        frame = self._frame(pieces)
        self._socket.settimeout(timeout)
        try:
            self._socket.sendall(frame)
        except TimeoutError:
            raise
        except OSError as error:  # why is what came before
            with contextlib.suppress(OSError):
                self._rest(GOODBYE)
            self._finish()
            raise self._protocol.close_exc from error

    def _frame(self, pieces: Sequence[bytes | memoryview]) -> memoryview:
        """Head and masked message (RFC 6455, sections 5.2 and 5.3), in memory that is kept."""
        size, key = sum(map(len, pieces)), secrets.token_bytes(4)
        words = (size + 7) // 8
        if len(self._buffer) < words + HEAD // 8:
            self._buffer = np.zeros(words + HEAD // 8, np.uint64)
        found, at = self._buffer.view(np.uint8).data, HEAD
        for piece in pieces:
            found[at : at + len(piece)] = piece
            at += len(piece)
        body = self._buffer[HEAD // 8 : HEAD // 8 + words]
        np.bitwise_xor(body, np.frombuffer(key * 2, np.uint64), out=body)
        if size < 126:
            head = struct.pack(">BB", 0x82, 0x80 | size)
        elif size < 1 << 16:
            head = struct.pack(">BBH", 0x82, 0x80 | 126, size)
        else:
            head = struct.pack(">BBQ", 0x82, 0x80 | 127, size)
        begin = HEAD - len(head) - len(key)
        found[begin:HEAD] = head + key
        return found[begin:at]

    def recv(self, timeout: float) -> bytes | str:
        end = time.monotonic() + timeout
        while not self._messages:
            if self._ended:
                raise self._protocol.close_exc
            self._read(end)
        return self._messages.popleft()

    def drain(self) -> int:
        if self.gone() and not self._messages:
            raise self._protocol.close_exc
        count = len(self._messages)
        self._messages.clear()
        return count

    def gone(self) -> bool:
        try:
            self._socket.settimeout(0.0)
            for _ in range(MOST_BYTES // READ):
                if self._ended:
                    break
                self._take(self._socket.recv(READ))
        except BlockingIOError:
            pass
        except OSError:
            self._finish()
        return self._protocol.state is not State.OPEN

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._protocol.state is State.OPEN:
                self._socket.settimeout(GOODBYE)
                self._protocol.send_close(1000)
                self._answer()
                self._rest(GOODBYE)
        self._socket.close()

    def abandon(self) -> None:
        self._socket.close()

    def _rest(self, timeout: float) -> None:
        end = time.monotonic() + timeout
        while not self._ended:
            self._read(end)

    def _read(self, end: float) -> None:
        """What comes next, until a time."""
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the server sends nothing")
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(READ)
        except ConnectionResetError:
            data = b""
        self._take(data)

    def _take(self, data: bytes) -> None:
        if not data:
            self._finish()
            return
        self._protocol.receive_data(data)
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._add(event)
        with contextlib.suppress(OSError):  # it has gone, which the next look says
            self._answer()

    def _finish(self) -> None:
        self._ended = True
        self._protocol.receive_eof()

    def _add(self, frame: Frame) -> None:
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        self._parts.append(frame)
        if frame.fin:
            data = b"".join(part.data for part in self._parts)
            words = self._parts[0].opcode is Opcode.TEXT
            self._messages.append(data.decode(errors="replace") if words else data)
            self._parts = []

    def _answer(self) -> None:
        """Pongs and goodbyes."""
        for data in self._protocol.data_to_send():
            if data:
                self._socket.sendall(data)


class _LibrarySocket:
    def __init__(self, url: str, token: str | None, timeout: float) -> None:
        self._open = contextlib.ExitStack()
        opening = connect(
            url,
            additional_headers=_headers(token),
            compression=None,
            max_size=MOST_BYTES,
            open_timeout=timeout,
            close_timeout=GOODBYE,
        )
        self._connection = self._open.enter_context(opening)

    def send(self, pieces: Sequence[bytes | memoryview], timeout: float) -> None:
        seconds, part = divmod(timeout, 1.0)
        limit = struct.pack("ll", int(seconds), int(part * 1e6))
        # The library has no time limit for sending; its thread that receives polls, and has none.
        self._connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        try:
            self._connection.send(_fragments(pieces))
        except ConnectionClosed as error:
            if isinstance(error.__cause__, BlockingIOError):
                raise TimeoutError("the server takes nothing") from error
            raise

    def recv(self, timeout: float) -> bytes | str:
        return self._connection.recv(timeout=timeout)

    def drain(self) -> int:
        for count in itertools.count():
            try:
                self._connection.recv(timeout=0)
            except TimeoutError:
                return count
        raise AssertionError("unreachable")

    def gone(self) -> bool:
        return self._connection.protocol.state is not State.OPEN

    def close(self) -> None:
        self._open.close()

    def abandon(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.socket.shutdown(socket.SHUT_RDWR)
        self._open.close()


def _fragments(pieces: Sequence[bytes | memoryview]) -> Iterator[bytes | memoryview]:
    """The message in frames that the allocator keeps memory for: from 128 KiB on glibc maps pages
    anew each time, which takes longer than all the rest."""
    small = b""
    for piece in pieces:
        if len(small) + len(piece) <= SMALL:
            small += piece
            continue
        if small:
            yield small
        small = b""
        for at in range(0, len(piece), FRAGMENT):
            yield piece[at : at + FRAGMENT]
    yield small
