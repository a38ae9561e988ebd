"""A server in a thread, with a policy that answers at once, late, or not at all."""

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from vlakern.errors import InputError, VlakernError
from vlakern.serve.batcher import Batcher
from vlakern.serve.server import Server, ServerConfig
from vlakern.serve.wire import Keys
from vlakern.types import ActionChunk, Observation

VIEWS = ("front", "wrist")


class Echo:
    """Actions that say what was seen: [sum of the state, pixels of all views, seed]."""

    def __init__(self) -> None:
        self.takes = 0.0
        self.steps = 4
        self.batches: list[int] = []
        self.fails: BaseException | None = None

    def act_batch(
        self, observations: Sequence[Observation], seeds: Sequence[int] | None = None
    ) -> list[ActionChunk]:
        assert seeds is not None
        time.sleep(self.takes)
        self.batches.append(len(observations))
        if self.fails is not None:
            raise self.fails
        for seen in observations:
            if not seen.images:
                raise InputError("the observation has no view; expected front, wrist")
        rows = [
            [float(o.state.sum()), float(sum(i.sum() for i in o.images.values())), float(s % 1000)]
            for o, s in zip(observations, seeds, strict=True)
        ]
        return [ActionChunk(np.tile(np.array(row, np.float32), (self.steps, 1))) for row in rows]


class Running:
    """A server on a thread of its own."""

    def __init__(
        self, policy: Any, config: ServerConfig, keys: Keys, metadata: dict[str, Any] | None = None
    ) -> None:
        self._batcher, self.keys = Batcher(policy, 4), keys
        self._failed: BaseException | None = None
        self.server = Server(self._batcher, keys, metadata or {"policy": "secret-name"}, config)
        self._ready, self._end = threading.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(10)
        if self._failed is not None:
            raise self._failed

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.server.port}"

    def _run(self) -> None:
        async def life() -> None:
            async with self.server:
                self._ready.set()
                await self._end.wait()

        try:
            self._loop.run_until_complete(life())
        except VlakernError as error:
            self._failed = error
            self._ready.set()

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        assert not self._thread.is_alive(), "the server does not end"
        self._batcher.close()


def shaken(port: int, timeout: float = 10.0) -> socket.socket:
    """A socket after the handshake and the metadata, which nobody reads for the test."""
    peer = socket.create_connection(("127.0.0.1", port), timeout=timeout)
    peer.sendall(
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    found = b""
    while b"\r\n\r\n" not in found:
        found += peer.recv(1)
    assert found.startswith(b"HTTP/1.1 101"), found
    assert frame(peer)[0] == 2
    return peer


def frame(peer: socket.socket) -> tuple[int, bytes]:
    """Opcode and payload of the server's next frame; ``EOFError`` after the last."""
    first, size = exactly(peer, 2)
    if size == 126:
        (size,) = struct.unpack(">H", exactly(peer, 2))
    elif size == 127:
        (size,) = struct.unpack(">Q", exactly(peer, 8))
    return first & 15, exactly(peer, size)


def exactly(peer: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = peer.recv(count - len(found))
        if not more:
            raise EOFError
        found += more
    return found


def wait_for(there: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


Start = Callable[..., Running]


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def start(echo: Echo) -> Iterator[Start]:
    """Starts servers of ``echo``; they end with the test."""
    running: list[Running] = []

    def begin(
        policy: Any = None,
        keys: Keys | None = None,
        metadata: dict[str, Any] | None = None,
        **config: Any,
    ) -> Running:
        settings = ServerConfig(**{"port": 0, **config})
        running.append(Running(policy or echo, settings, keys or Keys(VIEWS), metadata))
        return running[-1]

    yield begin
    for one in running:
        one.close()


def message(**more: Any) -> dict[str, Any]:
    image = np.ones((4, 5, 3), np.uint8)
    plain = {"observation/front": image, "observation/wrist": image * 2}
    return {
        **plain,
        "observation/state": np.array([1, 2], np.float32),
        "prompt": "pick",
        "seed": 7,
        **more,
    }
