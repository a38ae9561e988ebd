"""What a server says to one client: metadata, then a reply per request, over any transport."""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
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

__all__ = ["Peer", "Sessions", "ThreadPeer"]

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


class ThreadPeer(Protocol):
    """One client that has a thread of its own, which its transport lets wait.

    What it raises when it has gone is ``OSError``; ``BlockingIOError`` after its time limits.
    """

    def recv(self) -> bytes: ...

    def send(self, message: bytes | str, /) -> None: ...

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
        self._idle: set[Peer | ThreadPeer] = set()
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

    async def serve_on_thread(self, peer: ThreadPeer) -> None:
        """:meth:`serve` without the event loop, which waits for the thread's end."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        ended = loop.create_future()
        thread = threading.Thread(
            target=self._life, args=(peer, loop, ended), name="vlakern-client", daemon=True
        )
        self._tasks.add(task)
        try:
            thread.start()
            await ended
        finally:
            self._tasks.discard(task)

    def _life(
        self, peer: ThreadPeer, loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[None]"
    ) -> None:
        try:
            peer.send(self._hello)
            self._talk_on_thread(peer)
        except BlockingIOError:
            self.statistics.count("dropped")
        except OSError:
            pass
        finally:
            self._idle.discard(peer)
            with suppress(RuntimeError):  # the loop has ended without it
                loop.call_soon_threadsafe(_done, ended)

    def _talk_on_thread(self, peer: ThreadPeer) -> None:
        previous: float | None = None
        while True:
            self._idle.add(peer)
            if self._ending:  # looked at after it was added: one of both sees the other
                return
            data = peer.recv()
            self._idle.discard(peer)
            begin = time.perf_counter()
            reply = self._reply_on_thread(data, begin, previous)
            if self.config.blind is not None:
                time.sleep(self._wait(begin, self.config.blind))
            peer.send(reply)
            if isinstance(reply, str):
                return
            previous = (time.perf_counter() - begin) * 1e3

    def _reply_on_thread(self, data: bytes, begin: float, previous: float | None) -> bytes | str:
        self.statistics.count("requests")
        try:
            message = decode(data, self.config.most_bytes)
            found = asked(message, self._keys)
            answer = self._batcher.act_here(found.observation, found.seed, found.prefix)
        except (InputError, PolicyFailed) as error:
            return self._refusal(error)
        self.statistics.batched(answer.rows)
        return self._encoded(answer, message, begin, previous)

    async def end(self) -> None:
        """Answers the requests that have come, and tells everyone else to go."""
        self._ending = True
        for peer in list(self._idle):
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
                await asyncio.sleep(self._wait(begin, self.config.blind))
            if reply is not None:
                await self._send(peer, reply)
            if isinstance(reply, str):
                await self._part(peer, ERROR, "error")
                return
            previous = (time.perf_counter() - begin) * 1e3
        await self._part(peer, GOING, "the server ends")

    def _wait(self, begin: float, blind: float) -> float:
        """Until the reply of a blind server is due [s]."""
        over = int((time.perf_counter() - begin) // blind)
        if over > 0:
            self.statistics.count("late")
        return max(begin + (over + 1) * blind - time.perf_counter(), 0.0)

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
        self.statistics.count("dropped")
        self._close(peer, REFUSED, "idle or slow")

    def _close(self, peer: Peer | ThreadPeer, code: int, reason: str) -> None:
        task = asyncio.get_running_loop().create_task(self._part(peer, code, reason))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _part(self, peer: Peer | ThreadPeer, code: int, reason: str) -> None:
        """A goodbye waits until what was sent before is taken, so it has a time limit."""
        try:
            await asyncio.wait_for(peer.close(code, reason), 2 * self.config.close_timeout)
        except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
            peer.abort()

    async def _reply(
        self, peer: Peer, data: bytes | str, previous: float | None
    ) -> bytes | str | None:
        """The reply to a request, or the sentence of an error; None where it went already."""
        self.statistics.count("requests")
        begin = time.perf_counter()
        try:
            if isinstance(data, str):
                raise InputError("a text message; expected msgpack")
            message = decode(data, self.config.most_bytes)
            found = asked(message, self._keys)
            way = _Way(self._encoded, peer, message, begin, previous)
            direct = peer.direct and self.config.blind is None
            answer = await self._batcher.act(
                found.observation, found.seed, way.deliver if direct else None, found.prefix
            )
        except (InputError, PolicyFailed) as error:
            return self._refusal(error)
        self.statistics.batched(answer.rows)
        return None if way.gone else self._encoded(answer, message, begin, previous)

    def _refusal(self, error: InputError | PolicyFailed) -> str:
        """What a client is told: of its own mistake a sentence, of the policy's a number."""
        number = _number()
        if isinstance(error, InputError):
            self.statistics.count("refused")
            words = _line(error)
            LOG.warning("error %s: %s", number, words)
            return f"error {number}" if self.config.blind else f"error {number}: {words}"
        self.statistics.count("failed")
        LOG.error("error %s", number, exc_info=error.__cause__)
        hint = "" if self.config.blind else ": the policy failed; the server's log says why"
        return f"error {number}{hint}"

    def _encoded(
        self, answer: Answer, message: Mapping[str, Any], begin: float, previous: float | None
    ) -> bytes:
        found: dict[str, Any] = {"actions": np.asarray(answer.chunk.actions, np.float32)}
        if REQUEST in message:
            found[REQUEST] = message[REQUEST]
        if self.config.blind is None:
            took_ms = (time.perf_counter() - begin) * 1e3
            found["policy_timing"] = {"infer_ms": answer.infer_ms}
            found["server_timing"] = {"infer_ms": took_ms}
            if previous is not None:
                found["server_timing"]["prev_total_ms"] = previous
        return encode(found)


@dataclass
class _Way:
    """From an answer to its client.

    Attributes:
        gone: the reply was sent by the policy's thread, which saves the way over the event loop.
    """

    encoded: Callable[[Answer, Mapping[str, Any], float, float | None], bytes]
    peer: Peer
    message: Mapping[str, Any]
    begin: float
    previous: float | None
    gone: bool = False

    def deliver(self, answer: Answer) -> None:
        found = self.encoded(answer, self.message, self.begin, self.previous)
        self.gone = self.peer.send_now(found)


def _done(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _line(error: InputError) -> str:
    """Its sentence, whose quotes come from the client: no line of a log is made of them."""
    words = str(error)[:MOST_LETTERS]
    return "".join(one if one.isprintable() else "?" for one in words)


def _number() -> str:
    return secrets.token_hex(4)
