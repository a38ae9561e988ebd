"""A policy behind openpi's websocket protocol, safe by default.

The protocol: a map of metadata after the handshake, then one binary reply per binary request, in
order; after an error a text frame and code 1011. ``GET /healthz`` on the same port.
"""

import asyncio
import hmac
import ipaddress
import logging
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.asyncio.server import Server as SocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from vlakern.errors import ConfigError, InputError
from vlakern.serve.batcher import Answer, Batcher, PolicyFailed
from vlakern.serve.codec import MOST_BYTES, decode, encode
from vlakern.serve.wire import Keys, observation

__all__ = ["Server", "ServerConfig"]

LOG = logging.getLogger(__name__)
HEALTH = "/healthz"
SHORTEST_TOKEN = 16  # characters


@dataclass(frozen=True)
class ServerConfig:
    """Where a server listens, and what it allows.

    Attributes:
        host, port: 0 takes a free port. Another host than this machine's own needs a token.
        token: clients send ``Authorization: Api-Key TOKEN``.
        most_bytes: of a message.
        most_connections: at a time.
        open_timeout, idle_timeout, send_timeout: until a client is dropped that does not finish its
            handshake, sends nothing, or does not take its reply [s].
        blind: metadata and timing are left out, and every reply is sent this long after its
            request [s]; None for an open server.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    most_bytes: int = MOST_BYTES
    most_connections: int = 8
    open_timeout: float = 5.0
    idle_timeout: float = 120.0
    send_timeout: float = 5.0
    blind: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port is {self.port}, expected 0 to 65535")
        if self.token is not None and len(self.token) < SHORTEST_TOKEN:
            raise ConfigError(
                f"the token has {len(self.token)} characters, expected at least {SHORTEST_TOKEN};"
                " `python -c 'import secrets; print(secrets.token_urlsafe(32))'` makes one"
            )
        if not _loopback(self.host) and self.token is None:
            raise ConfigError(
                f"host {self.host!r} can be reached from other machines, which needs a token; give"
                " one, or listen on 127.0.0.1"
            )
        if self.most_bytes < 1 or self.most_connections < 1:
            raise ConfigError("most_bytes and most_connections have to be at least 1")
        if self.blind is not None and not 0.0 < self.blind <= 60.0:
            raise ConfigError(f"blind is {self.blind} s, expected more than 0 and at most 60")


@dataclass
class Statistics:
    """What a server has counted."""

    requests: int = 0
    refused: int = 0
    failed: int = 0
    late: int = 0  # replies of a blind server after their time
    dropped: int = 0
    largest_batch: int = 0
    open: set[Any] = field(default_factory=set)


class Server:
    """Listens inside ``async with``; the policy has been warmed up before.

    Attributes:
        port: where it listens.
        statistics: counts so far.
    """

    def __init__(
        self, batcher: Batcher, keys: Keys, metadata: Mapping[str, Any], config: ServerConfig
    ) -> None:
        self.config, self.port = config, config.port
        self.statistics = Statistics()
        self._batcher, self._keys = batcher, keys
        self._metadata = {} if config.blind else {**metadata, "keys": keys.announced()}
        self._server: SocketServer | None = None

    async def __aenter__(self) -> "Server":
        config = self.config
        self._server = server = await serve(
            self._client,
            config.host,
            config.port,
            process_request=self._upgrade,
            compression=None,
            max_size=config.most_bytes,
            max_queue=2,
            open_timeout=config.open_timeout,
            server_header=None,
        )
        self.port = next(iter(server.sockets)).getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()  # open requests are answered before code 1001
        await self._server.wait_closed()

    def _upgrade(self, connection: ServerConnection, request: Request) -> Response | None:
        """Refuses a handshake, before a byte of a message is read."""
        path = request.path.split("?")[0]
        host = request.headers.get("Host", "")
        if _loopback(self.config.host) and not _loopback(host.rsplit(":", 1)[0].strip("[]")):
            return connection.respond(421, "this server answers to its own machine\n")
        if request.headers.get("Origin") is not None:
            return connection.respond(403, "web pages are not served\n")
        if path == HEALTH:
            return connection.respond(200, "OK\n")
        if not self._authorised(request.headers.get("Authorization", "")):
            return connection.respond(401, "send the header Authorization: Api-Key TOKEN\n")
        if len(self.statistics.open) >= self.config.most_connections:
            return connection.respond(503, "too many connections\n")
        self.statistics.open.add(connection)
        return None

    def _authorised(self, header: str) -> bool:
        if self.config.token is None:
            return True
        wanted = f"Api-Key {self.config.token}"
        return hmac.compare_digest(header.encode(), wanted.encode())

    async def _client(self, connection: ServerConnection) -> None:
        try:
            await self._send(connection, encode(self._metadata))
            previous: float | None = None
            while True:
                data = await asyncio.wait_for(connection.recv(), self.config.idle_timeout)
                begin = time.perf_counter()
                reply = await self._reply(data, previous)
                if isinstance(reply, str):
                    await self._send(connection, reply)
                    await connection.close(1011, "error")
                    return
                if self.config.blind is not None:
                    left = begin + self.config.blind - time.perf_counter()
                    self.statistics.late += left < 0
                    await asyncio.sleep(max(left, 0.0))
                await self._send(connection, reply)
                previous = (time.perf_counter() - begin) * 1e3
        except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
            self.statistics.dropped += 1
            await connection.close(1008, "idle or slow")
        except ConnectionClosed:
            pass
        finally:
            self.statistics.open.discard(connection)

    async def _send(self, connection: ServerConnection, data: bytes | str) -> None:
        await asyncio.wait_for(connection.send(data), self.config.send_timeout)

    async def _reply(self, data: bytes | str, previous: float | None) -> bytes | str:
        """The reply to a request, or the sentence of an error."""
        self.statistics.requests += 1
        begin = time.perf_counter()
        try:
            if isinstance(data, str):
                raise InputError("a text message; expected msgpack")
            seen, seed = observation(decode(data, self.config.most_bytes), self._keys)
            answer = await self._batcher.act(seen, seed)
        except InputError as error:
            self.statistics.refused += 1
            number = _number()
            LOG.warning("error %s: %s", number, error)
            return f"error {number}" if self.config.blind else f"error {number}: {error}"
        except PolicyFailed as error:
            self.statistics.failed += 1
            number = _number()
            LOG.error("error %s", number, exc_info=error.__cause__)
            return f"error {number}: the policy failed; the server's log says why"
        self.statistics.largest_batch = max(self.statistics.largest_batch, answer.rows)
        return self._encoded(answer, (time.perf_counter() - begin) * 1e3, previous)

    def _encoded(self, answer: Answer, took_ms: float, previous: float | None) -> bytes:
        found: dict[str, Any] = {"actions": np.asarray(answer.chunk.actions, np.float32)}
        if self.config.blind is None:
            found["policy_timing"] = {"infer_ms": answer.infer_ms}
            found["server_timing"] = {"infer_ms": took_ms}
            if previous is not None:
                found["server_timing"]["prev_total_ms"] = previous
        return encode(found)


def _number() -> str:
    return secrets.token_hex(4)


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
