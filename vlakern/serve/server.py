"""A policy behind openpi's websocket protocol, safe by default.

The protocol: a map of metadata after the handshake, then one binary reply per binary request, in
order; after an error a text frame and code 1011. ``GET /healthz`` on the same port.
"""

import asyncio
import hmac
import logging
import os
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

from websockets.asyncio.server import Server as SocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State

from vlakern.errors import ConfigError
from vlakern.serve._sparing import Sparing
from vlakern.serve.batcher import Batcher
from vlakern.serve.session import Sessions
from vlakern.serve.settings import ServerConfig, Statistics, loopback
from vlakern.serve.shared import SharedListener
from vlakern.serve.wire import Keys

__all__ = ["Server", "ServerConfig"]

HEALTH = "/healthz"
LOG = logging.getLogger(__name__)
LOG.addFilter(Sparing())
# Pongs pile up for a peer that reads none; a reply is a tenth of this [bytes].
MOST_UNSENT = 1 << 20
MOST_DIRECT = 1 << 16  # of a reply that does not wait for room [bytes]
MOST_PIECES = 4096  # frames of a message: its size counts no empty ones


class Server:
    """Listens inside ``async with``; the policy has been warmed up before.

    Raises:
        ConfigError: it cannot listen there.

    Attributes:
        port: where it listens.
        opening: connections that are no sessions yet.
        statistics: counts so far.
    """

    def __init__(
        self, batcher: Batcher, keys: Keys, metadata: Mapping[str, Any], config: ServerConfig
    ) -> None:
        self.config, self.port = config, config.port
        self._sessions = Sessions(batcher, keys, metadata, config)
        self.opening: dict[ServerConnection, None] = {}  # the oldest first
        self._server: SocketServer | None = None
        self._shared: SharedListener | None = None

    @property
    def statistics(self) -> Statistics:
        return self._sessions.statistics

    async def __aenter__(self) -> "Server":
        config = self.config
        if config.shared is not None:
            self._shared = SharedListener(config.shared, self._sessions)
            self._shared.start()
        try:
            self._server = server = await self._listening()
        except OSError as error:
            if self._shared is not None:
                self._shared.close()
            raise ConfigError(
                f"cannot listen on {config.host}, port {config.port} ({error.strerror or error});"
                " give another one, or 0 as port for a free one"
            ) from error
        self.port = next(iter(server.sockets)).getsockname()[1]
        return self

    async def _listening(self) -> SocketServer:
        config = self.config
        return await serve(
            self._client,
            config.host,
            config.port,
            process_request=self._upgrade,
            compression=None,
            max_size=config.most_bytes,
            max_queue=2,
            open_timeout=config.open_timeout,
            close_timeout=config.close_timeout,
            server_header=None,
            logger=LOG,
            create_connection=type("Connection", (_Connection,), {"owner": self}),
        )

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close(close_connections=False)  # no new ones
        if self._shared is not None:
            self._shared.close()
        await self._sessions.end()
        for connection in [*self.opening, *self.statistics.open]:
            if isinstance(connection, ServerConnection):
                connection.transport.abort()
        if self._shared is not None:
            await self._shared.wait_closed()
        await self._server.wait_closed()

    async def _client(self, connection: ServerConnection) -> None:
        assert isinstance(connection, _Connection)
        await self._sessions.serve(connection)

    def _upgrade(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuses a handshake, before a byte of a message is read."""
        path = request.path.split("?")[0]
        host = request.headers.get("Host", "")
        if loopback(self.config.host) and not loopback(host.rsplit(":", 1)[0].strip("[]")):
            return connection.respond(421, "this server answers to its own machine\n")
        if request.headers.get("Origin") is not None:
            return connection.respond(403, "web pages are not served\n")
        if path == HEALTH:
            return connection.respond(200, "OK\n")
        if not self._authorised(request.headers.get("Authorization", "")):
            return connection.respond(401, "send the header Authorization: Api-Key TOKEN\n")
        if self._sessions.full():
            return connection.respond(503, "too many connections\n")
        self.opening.pop(connection, None)
        self.statistics.open.add(connection)
        return None

    def _authorised(self, header: str) -> bool:
        if self.config.token is None:
            return True
        wanted = f"Api-Key {self.config.token}"
        # Header bytes above 127 come as surrogates.
        return hmac.compare_digest(header.encode("utf-8", "surrogateescape"), wanted.encode())


class _Connection(ServerConnection):
    """One of ``owner``, who learns when it goes.

    The policy's thread sends replies itself: a descriptor of its own goes to the same connection,
    and the lock keeps the event loop from sending at the same time.
    """

    owner: Server
    direct = True
    pieces = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        descriptor = os.dup(transport.get_extra_info("socket").fileno())
        self._sending = threading.Lock()
        self._socket: socket.socket | None = socket.socket(fileno=descriptor)
        self._rest = b""  # of a reply that was not taken at once
        opening = self.owner.opening
        opening[self] = None
        if len(opening) > self.owner.config.most_opening:
            # Who is at it since long waits for nothing; a client that just came needs a moment.
            oldest = next(iter(opening))
            del opening[oldest]
            oldest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        with self._sending:
            assert self._socket is not None
            self._socket.close()
            self._socket = None
        self.owner.opening.pop(self, None)
        self.owner.statistics.open.discard(self)
        super().connection_lost(exc)

    def send_data(self) -> None:
        with self._sending:
            if self._rest and self._socket is not None:
                self.transport.write(self._rest)
            self._rest = b""
            super().send_data()

    def send_now(self, message: bytes) -> bool:
        with self._sending:
            waits = self._rest or self.transport.get_write_buffer_size()
            if self._socket is None or waits or len(message) > MOST_DIRECT:
                return False
            if self.protocol.state is not State.OPEN:
                return False
            head = frame_head(len(message))
            try:
                sent = self._socket.sendmsg([head, message], [], socket.MSG_DONTWAIT)
            except OSError:  # no room at all, or it has gone
                return False
            self._rest = (head + message)[sent:]
            if self._rest:
                self.loop.call_soon_threadsafe(self.send_data)
        return True

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.get_write_buffer_size() > MOST_UNSENT:
            self.abort()

    def process_event(self, event: Any) -> None:
        if isinstance(event, Frame) and event.opcode in (Opcode.CONT, Opcode.TEXT, Opcode.BINARY):
            self.pieces = 0 if event.fin else self.pieces + 1
            if self.pieces > MOST_PIECES:
                self.abort()
                return
        super().process_event(event)

    def abort(self) -> None:
        self.transport.abort()


def frame_head(size: int) -> bytes:
    """Of a whole binary message that a server sends (RFC 6455, section 5.2)."""
    if size < 126:
        return struct.pack(">BB", 0x82, size)
    if size < 1 << 16:
        return struct.pack(">BBH", 0x82, 126, size)
    return struct.pack(">BBQ", 0x82, 127, size)
