"""What a server says to one client: metadata, then a reply per request, over any transport."""

import asyncio
import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from websockets.exceptions import ConnectionClosed

from vlakern.errors import InputError
from vlakern.serve._sparing import Sparing
from vlakern.serve.batcher import Answer, Batcher, PolicyFailed
from vlakern.serve.codec import decode, encode
from vlakern.serve.settings import ServerConfig, Statistics
from vlakern.serve.wire import REQUEST, Keys, asked

__all__ = ["Peer", "Sessions"]

LOG = logging.getLogger(__name__)
LOG.addFilter(Sparing())
MOST_LETTERS = 400
ERROR, GOING, REFUSED = 1011, 1001, 1008  # of RFC 6455, section 7.4.1


class Peer(Protocol):
    """One client; a websocket connection is one. What it raises when it has gone is ``OSError``."""

    @property
    def direct(self) -> bool:
        """Whether :meth:`send_now` may be used."""
        ...

    def send_now(self, message: bytes) -> bool:
        """From any thread, without waiting; whether it went."""
        ...

    async def recv(self) -> bytes | str: ...

    async def send(self, message: bytes | str, /) -> None: ...

    async def close(self, code: int = 1000, reason: str = "") -> None: ...

    def abort(self) -> None:
        """Ends whatever waits for the client, at once."""
        ...


class Sessions:
    """The clients of a server.

    Attributes:
        statistics: counts so far.
    """

    def __init__(
        self, batcher: Batcher, keys: Keys, metadata: Mapping[str, Any], config: ServerConfig
    ) -> None:
        self.config, self.statistics = config, Statistics()
        self._batcher, self._keys = batcher, keys
        found = {**metadata, "keys": keys.announced(), "most_bytes": config.most_bytes}
        self._hello = encode({} if config.blind else found)
        self._ending = False
        self._idle: set[Peer] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing: set[asyncio.Task[Any]] = set()

    def full(self) -> bool:
        """Whether one more client would be too many."""
        return self._ending or len(self.statistics.open) >= self.config.most_connections

    async def serve(self, peer: Peer) -> None:
        """Talks to a client until it goes, is silent for too long, or makes a mistake."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._send(peer, self._hello)
            await self._talk(peer)
        except (ConnectionClosed, OSError):
            pass
        finally:
            self._idle.discard(peer)
            self._tasks.discard(task)

    async def end(self) -> None:
        """Answers the requests that have come, and tells everyone else to go."""
        self._ending = True
        for peer in self._idle:
            self._close(peer, GOING, "the server ends")
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.config.end_timeout)
        for task in self._tasks:
            task.cancel()
        if self._closing:
            await asyncio.wait(self._closing)

    async def _talk(self, peer: Peer) -> None:
        previous: float | None = None
        while not self._ending:
            self._idle.add(peer)
            with self._within(self.config.idle_timeout, peer):
                data = await peer.recv()
            self._idle.discard(peer)
            begin = time.perf_counter()
            reply = await self._reply(peer, data, previous)
            if self.config.blind is not None:
                over = int((time.perf_counter() - begin) // self.config.blind)
                self.statistics.late += over > 0
                left = begin + (over + 1) * self.config.blind - time.perf_counter()
                await asyncio.sleep(max(left, 0.0))
            if reply is not None:
                await self._send(peer, reply)
            if isinstance(reply, str):
                await self._part(peer, ERROR, "error")
                return
            previous = (time.perf_counter() - begin) * 1e3
        await self._part(peer, GOING, "the server ends")

    async def _send(self, peer: Peer, data: bytes | str) -> None:
        with self._within(self.config.send_timeout, peer):
            await peer.send(data)

    @contextmanager
    def _within(self, seconds: float, peer: Peer) -> Iterator[None]:
        """A timer is a tenth of the time of ``asyncio.wait_for``, which makes a task."""
        timer = asyncio.get_running_loop().call_later(seconds, self._drop, peer)
        try:
            yield
        finally:
            timer.cancel()

    def _drop(self, peer: Peer) -> None:
        self.statistics.dropped += 1
        self._close(peer, REFUSED, "idle or slow")

    def _close(self, peer: Peer, code: int, reason: str) -> None:
        task = asyncio.get_running_loop().create_task(self._part(peer, code, reason))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _part(self, peer: Peer, code: int, reason: str) -> None:
        """A goodbye waits until what was sent before is taken, so it has a time limit."""
        try:
            await asyncio.wait_for(peer.close(code, reason), 2 * self.config.close_timeout)
        except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
            peer.abort()

    async def _reply(
        self, peer: Peer, data: bytes | str, previous: float | None
    ) -> bytes | str | None:
        """The reply to a request, or the sentence of an error; None where it went already."""
        self.statistics.requests += 1
        begin = time.perf_counter()
        try:
            if isinstance(data, str):
                raise InputError("a text message; expected msgpack")
            message = decode(data, self.config.most_bytes)
            found = asked(message, self._keys)
            way = _Way(self, peer, message, begin, previous)
            direct = peer.direct and self.config.blind is None
            answer = await self._batcher.act(
                found.observation, found.seed, way.deliver if direct else None, found.prefix
            )
        except InputError as error:
            self.statistics.refused += 1
            number = _number()
            words = _line(error)
            LOG.warning("error %s: %s", number, words)
            return f"error {number}" if self.config.blind else f"error {number}: {words}"
        except PolicyFailed as error:
            self.statistics.failed += 1
            number = _number()
            LOG.error("error %s", number, exc_info=error.__cause__)
            hint = "" if self.config.blind else ": the policy failed; the server's log says why"
            return f"error {number}{hint}"
        self.statistics.largest_batch = max(self.statistics.largest_batch, answer.rows)
        return None if way.gone else way.encoded(answer)


@dataclass
class _Way:
    """From an answer to its client.

    Attributes:
        gone: the reply was sent by the policy's thread, which saves the way over the event loop.
    """

    sessions: Sessions
    peer: Peer
    message: Mapping[str, Any]
    begin: float
    previous: float | None
    gone: bool = False

    def deliver(self, answer: Answer) -> None:
        self.gone = self.peer.send_now(self.encoded(answer))

    def encoded(self, answer: Answer) -> bytes:
        found: dict[str, Any] = {"actions": np.asarray(answer.chunk.actions, np.float32)}
        if REQUEST in self.message:
            found[REQUEST] = self.message[REQUEST]
        if self.sessions.config.blind is None:
            took_ms = (time.perf_counter() - self.begin) * 1e3
            found["policy_timing"] = {"infer_ms": answer.infer_ms}
            found["server_timing"] = {"infer_ms": took_ms}
            if self.previous is not None:
                found["server_timing"]["prev_total_ms"] = self.previous
        return encode(found)


def _line(error: InputError) -> str:
    """Its sentence, whose quotes come from the client: no line of a log is made of them."""
    words = str(error)[:MOST_LETTERS]
    return "".join(one if one.isprintable() else "?" for one in words)


def _number() -> str:
    return secrets.token_hex(4)
