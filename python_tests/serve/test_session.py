"""A session over any transport: metadata, replies in order, and an end for whoever is slow."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from python_tests.serve.conftest import VIEWS, Echo, message
from vlakern.serve.batcher import Batcher
from vlakern.serve.codec import decode, encode
from vlakern.serve.session import Sessions
from vlakern.serve.settings import ServerConfig
from vlakern.serve.wire import Keys


class Told:
    """A peer that a test plays: what it sends, what it got, and how it was told to go."""

    def __init__(self) -> None:
        self.sends: asyncio.Queue[bytes | str | None] = asyncio.Queue()
        self.got: asyncio.Queue[bytes | str] = asyncio.Queue()
        self.codes: list[int] = []
        self.takes, self.leaves, self.aborted, self.direct = True, True, False, False
        self.now: list[tuple[str, bytes]] = []

    def send_now(self, message: bytes) -> bool:
        self.now.append((threading.current_thread().name, message))
        return self.takes

    async def recv(self) -> bytes | str:
        found = await self.sends.get()
        if found is None:
            raise ConnectionResetError("gone")
        return found

    async def send(self, message: bytes | str, /) -> None:
        while not self.takes and not self.aborted:
            await asyncio.sleep(0.01)
        if self.aborted:
            raise ConnectionResetError("gone")
        self.got.put_nowait(message)

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.codes.append(code)
        if not self.leaves:
            await asyncio.sleep(60)
        self.abort()

    def abort(self) -> None:
        self.aborted = True
        self.sends.put_nowait(None)


def play(echo: Echo, script: Callable[[Sessions, Told], Awaitable[None]], **config: Any) -> Told:
    """Runs a session and its script until both have ended."""
    batcher = Batcher(echo, 4)

    async def life() -> Told:
        peer = Told()
        settings = ServerConfig(**{"close_timeout": 0.05, **config})
        sessions = Sessions(batcher, Keys(VIEWS), {"policy": "secret"}, settings)
        session = asyncio.create_task(sessions.serve(peer))
        await script(sessions, peer)
        await asyncio.wait_for(session, 10)
        return peer

    try:
        return asyncio.run(life())
    finally:
        batcher.close()


def test_metadata_says_what_a_message_may_hold(echo: Echo) -> None:
    async def script(sessions: Sessions, peer: Told) -> None:
        found = decode(bytes(await peer.got.get()))  # pyright: ignore[reportArgumentType]
        assert (found["policy"], found["most_bytes"]) == ("secret", 16 << 20)
        assert found["keys"]["prompt"] == ["prompt", "task"]
        peer.abort()

    assert play(echo, script).codes == []


def test_replies_come_in_order_and_count_their_time(echo: Echo) -> None:
    async def script(sessions: Sessions, peer: Told) -> None:
        await peer.got.get()
        for i in range(3):
            state = np.array([i], np.float32)
            peer.sends.put_nowait(encode(message(**{"observation/state": state})))
        for i in range(3):
            reply = await peer.got.get()
            assert isinstance(reply, bytes)
            found = decode(reply)
            assert found["actions"][0, 0] == i
            assert ("prev_total_ms" in found["server_timing"]) == (i > 0)
        peer.abort()

    play(echo, script)


@pytest.mark.parametrize("takes", [True, False])
def test_a_direct_reply_is_sent_once(echo: Echo, takes: bool) -> None:
    """By the policy's thread, or by the event loop where that could not."""

    async def script(sessions: Sessions, peer: Told) -> None:
        await peer.got.get()
        peer.direct, peer.takes = True, takes
        peer.sends.put_nowait(encode(message()))
        while not peer.now:
            await asyncio.sleep(0.01)
        peer.takes = True
        await asyncio.sleep(0.05)
        thread, sent = peer.now[0]
        assert thread == "vlakern-infer"
        assert decode(sent)["actions"].shape == (4, 3)
        assert peer.got.qsize() == (0 if takes else 1)
        peer.abort()

    play(echo, script)


@pytest.mark.parametrize("leaves", [True, False])
@pytest.mark.parametrize("kind", ["silent", "slow"])
def test_the_silent_and_the_slow_are_told_and_then_cut_off(
    echo: Echo, kind: str, leaves: bool
) -> None:
    async def script(sessions: Sessions, peer: Told) -> None:
        peer.leaves = leaves
        await peer.got.get()
        if kind == "slow":
            peer.takes = False
            peer.sends.put_nowait(encode(message()))
        while not peer.aborted:
            await asyncio.sleep(0.01)
        assert sessions.statistics.dropped == 1

    assert play(echo, script, idle_timeout=0.1, send_timeout=0.1).codes == [1008]


def test_the_end_waits_for_requests_and_not_for_ever(echo: Echo) -> None:
    async def answered(sessions: Sessions, peer: Told) -> None:
        echo.takes = 0.2
        await peer.got.get()
        peer.sends.put_nowait(encode(message()))
        while not sessions.statistics.requests:
            await asyncio.sleep(0.01)
        await sessions.end()
        assert isinstance(peer.got.get_nowait(), bytes)
        assert sessions.full()

    async def given_up(sessions: Sessions, peer: Told) -> None:
        echo.takes = 1.0
        await peer.got.get()
        peer.sends.put_nowait(encode(message()))
        while not sessions.statistics.requests:
            await asyncio.sleep(0.01)
        begin = time.monotonic()
        await sessions.end()
        assert time.monotonic() - begin < 0.8

    assert play(echo, answered).codes == [1001]
    with pytest.raises(asyncio.CancelledError):
        play(echo, given_up, end_timeout=0.1)


@pytest.mark.parametrize("fault", [None, ZeroDivisionError("x")])
def test_a_blind_servers_errors_take_as_long_as_its_replies(
    echo: Echo, fault: BaseException | None
) -> None:
    """How soon a policy fails would tell it apart, and so would what it says."""

    async def script(sessions: Sessions, peer: Told) -> None:
        assert decode(bytes(await peer.got.get())) == {}  # pyright: ignore[reportArgumentType]
        echo.fails = fault
        begin = time.perf_counter()
        peer.sends.put_nowait(encode(message() if fault else {"prompt": "pick"}))
        reply = await peer.got.get()
        assert time.perf_counter() - begin > 0.19
        assert isinstance(reply, str)
        assert len(reply) == len("error 01234567")

    assert play(echo, script, blind=0.2).codes == [1011]
