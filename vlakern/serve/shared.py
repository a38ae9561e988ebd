"""The same messages in shared memory, for a client of the same user on the same machine.

A Unix socket of packets, open to its user alone, carries lengths; bytes lie in memory that the
server makes, seals against shrinking and hands over: the client has no say in its size. The
server's first packet is ``HELLO`` with that memory, or with the words of a refusal; every other one
``PACKET``: kind and length of a message, which lies at 0 for a request and behind the room of
requests for a reply. Whoever reads copies once and looks at the copy alone, since the other side
may still write. Nothing has a name, so the kernel frees all of it with the last process.
"""

import asyncio
import contextlib
import fcntl
import mmap
import os
import socket
import stat
import struct
import sys
from collections.abc import Sequence

from vlakern.errors import ConfigError, InputError, Unsupported
from vlakern.serve.session import Sessions

__all__ = ["SharedConnection", "SharedListener", "SharedPeer", "sealed_memory"]

HELLO = struct.Struct("<4sIQQ")  # magic, version, bytes for requests, bytes for replies
PACKET = struct.Struct("<IQ")  # kind, bytes
MAGIC, VERSION = b"vlak", 1
DATA, WORDS = 0, 1
REPLY_BYTES = 4 << 20
MOST_SHARED = 1 << 30  # what a client maps
SEALS = ("F_SEAL_SHRINK", "F_SEAL_GROW", "F_SEAL_SEAL")


def sealed_memory(size: int) -> int:
    """A descriptor of memory that keeps its size; a page that nobody wrote takes no room.

    Raises:
        Unsupported: this is no Linux.
    """
    if not sys.platform.startswith("linux"):
        raise Unsupported("shared memory needs Linux (memfd); use ws://")
    descriptor = os.memfd_create("vlakern-serve", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, sum(getattr(fcntl, name) for name in SEALS))
    return descriptor


class SharedPeer:
    """One client, as the server's thread for it sees it.

    Args:
        request_bytes: room for requests.
        idle, taking: until ``BlockingIOError``, where it sends nothing or takes nothing [s].
    """

    def __init__(
        self, connection: socket.socket, request_bytes: int, idle: float, taking: float
    ) -> None:
        connection.setblocking(True)
        for option, seconds in ((socket.SO_RCVTIMEO, idle), (socket.SO_SNDTIMEO, taking)):
            limit = struct.pack("ll", int(seconds), int(seconds % 1.0 * 1e6))
            connection.setsockopt(socket.SOL_SOCKET, option, limit)
        self._socket, self._room = connection, request_bytes
        self._memory: mmap.mmap | None = None

    def hello(self) -> None:
        """Hands the memory over; raises ``OSError`` where the client has gone."""
        size = self._room + REPLY_BYTES
        descriptor = sealed_memory(size)
        try:
            self._memory = mmap.mmap(descriptor, size)
            words = HELLO.pack(MAGIC, VERSION, self._room, REPLY_BYTES)
            socket.send_fds(self._socket, [words], [descriptor])
        finally:
            os.close(descriptor)

    def refuse(self, words: str) -> None:
        """Says why there is no memory."""
        with contextlib.suppress(OSError):
            self._socket.send(HELLO.pack(MAGIC, VERSION, 0, 0) + words.encode())

    def recv(self) -> bytes:
        packet = self._socket.recv(PACKET.size + 1)
        if len(packet) != PACKET.size:
            raise ConnectionResetError("no packet of the protocol")
        kind, length = PACKET.unpack(packet)
        if kind != DATA or length > self._room:
            self.send(f"{length} bytes of kind {kind}, expected at most {self._room} of 0")
            raise ConnectionResetError("no packet of the protocol")
        return self._there()[:length]

    def send(self, message: bytes | str, /) -> None:
        data = message.encode() if isinstance(message, str) else message
        if len(data) > REPLY_BYTES:
            raise ConnectionResetError(f"a reply of {len(data)} bytes, {REPLY_BYTES} have room")
        self._there()[self._room : self._room + len(data)] = data
        self._socket.send(PACKET.pack(WORDS if isinstance(message, str) else DATA, len(data)))

    def _there(self) -> mmap.mmap:
        """Raises ``OSError`` where the server has given the memory back, and left the policy."""
        if self._memory is None or self._memory.closed:
            raise ConnectionResetError("the memory has been given back")
        return self._memory

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """There is no goodbye."""
        self.abort()

    def abort(self) -> None:
        """Ends :meth:`recv` and :meth:`send` that wait."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def free(self) -> None:
        """Gives memory and descriptors back."""
        self.abort()
        self._socket.close()
        if self._memory is not None:
            self._memory.close()


class SharedListener:
    """Listens at a path.

    Raises:
        ConfigError: another server listens there, or something else lies there.
        Unsupported: this is no Linux.
    """

    def __init__(self, path: str, sessions: Sessions) -> None:
        self._path, self._sessions = path, sessions
        self._tasks: set[asyncio.Task[None]] = set()
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Inside a running event loop."""
        os.close(sealed_memory(1))
        _make_room(self._path)
        self._socket = found = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        found.setblocking(False)
        os.fchmod(found.fileno(), 0o600)  # before there is a file: nobody else ever gets in
        found.bind(self._path)
        found.listen(16)
        self._listen()

    def close(self) -> None:
        """Takes no new clients."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    async def wait_closed(self) -> None:
        """After the sessions' end, for their memory."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _listen(self) -> None:
        if self._socket is not None:
            asyncio.get_running_loop().add_reader(self._socket, self._accept, self._socket)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError:  # no descriptors are left: it would be called again at once
            loop = asyncio.get_running_loop()
            loop.remove_reader(listener)
            loop.call_later(1.0, self._listen)
            return
        task = asyncio.get_running_loop().create_task(self._client(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _client(self, connection: socket.socket) -> None:
        open_, config = self._sessions.statistics.open, self._sessions.config
        peer = SharedPeer(connection, config.most_bytes, config.idle_timeout, config.send_timeout)
        try:
            if _user(connection) not in (os.getuid(), 0):
                peer.refuse("another user's process")
            elif self._sessions.full():
                peer.refuse("too many connections")
            else:
                open_.add(peer)
                with contextlib.suppress(OSError):
                    peer.hello()
                    await self._sessions.serve_on_thread(peer)
        finally:
            open_.discard(peer)
            peer.free()


class SharedConnection:
    """A client's end of :class:`SharedPeer`.

    Args:
        path: of the server's socket.
        timeout: for the server's first packet [s].

    Raises:
        OSError: nobody is there, the server refuses, or it is no such server.
    """

    def __init__(self, path: str, timeout: float) -> None:
        with contextlib.ExitStack() as failed:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            failed.callback(self._socket.close)
            self._socket.settimeout(timeout)
            self._socket.connect(path)
            if _user(self._socket) not in (os.getuid(), 0):
                raise PermissionError(f"{path} belongs to a process of another user")
            self._memory, self._room = self._taken()
            failed.pop_all()

    def _taken(self) -> tuple[mmap.mmap, int]:
        words, descriptors, _, _ = socket.recv_fds(self._socket, HELLO.size + 200, 1)
        try:
            if len(words) < HELLO.size:
                raise ConnectionAbortedError("the server closed the connection")
            magic, version, room, replies = HELLO.unpack_from(words)
            if (magic, version) != (MAGIC, VERSION):
                raise ConnectionAbortedError("the server speaks another protocol")
            if not descriptors:
                raise ConnectionRefusedError(words[HELLO.size :].decode(errors="replace"))
            size = room + replies
            sealed = fcntl.fcntl(descriptors[0], fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
            if size > MOST_SHARED or os.fstat(descriptors[0]).st_size != size or not sealed:
                raise ConnectionAbortedError(f"the server's memory is not {size} sealed bytes")
            return mmap.mmap(descriptors[0], size), room
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def send(self, pieces: Sequence[bytes | memoryview], timeout: float) -> None:
        """One message, written where the server reads it.

        Raises:
            InputError: it has no room.
            OSError: the server has gone, or does not take it in time.
        """
        end = sum(map(len, pieces))
        if end > self._room:
            raise InputError(f"a message of {end} bytes, expected at most {self._room}")
        at = 0
        for piece in pieces:
            self._memory[at : at + len(piece)] = piece
            at += len(piece)
        self._socket.settimeout(timeout)
        self._socket.send(PACKET.pack(DATA, end))

    def recv(self, timeout: float) -> bytes | str:
        """The next message.

        Raises:
            OSError: the server has gone, does not answer in time, or breaks the protocol.
        """
        self._socket.settimeout(timeout)
        packet = self._socket.recv(PACKET.size + 1)
        if len(packet) != PACKET.size:
            raise ConnectionResetError("the server closed the connection")
        kind, length = PACKET.unpack(packet)
        if length > len(self._memory) - self._room:
            raise ConnectionResetError(f"a reply of {length} bytes, which have no room")
        data = self._memory[self._room : self._room + length]
        return data if kind == DATA else data.decode(errors="replace")

    def drain(self) -> int:
        """Nothing lies between that could repeat a reply."""
        return 0

    def gone(self) -> bool:
        """Whether the server has closed the connection."""
        self._socket.settimeout(0.0)
        try:
            return not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """At once; the server frees its side when it sees that."""
        self._socket.close()
        self._memory.close()

    abandon = close


def _user(connection: socket.socket) -> int:
    """Of the process at the other end."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return struct.unpack("<iII", credentials)[1]


def _make_room(path: str) -> None:
    """Takes away what a server that was killed has left; nothing else."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError(f"{path} is no socket; name a path where nothing is")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except OSError as error:
            raise ConfigError(f"{path} cannot be used ({error})") from error
    raise ConfigError(f"another server listens at {path}; name another path")
